"""Choosing a backbone before training: how well its features tell the classes apart, and how fast it runs in INT8."""

from edgetl.selection.candidates import DEFAULTS, Candidate, candidate_named, candidates_in, crossed
from edgetl.selection.logme import logme
from edgetl.selection.stage import Measured, Ranking, select, write_timed_bundle

__all__ = [
    "DEFAULTS",
    "Candidate",
    "Measured",
    "Ranking",
    "candidate_named",
    "candidates_in",
    "crossed",
    "logme",
    "select",
    "write_timed_bundle",
]
