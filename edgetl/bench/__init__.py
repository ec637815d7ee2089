"""Honest comparison of bundles: accuracy, latency, size, memory, cold start."""

from edgetl.bench.accuracy import answers, label_indices, scores
from edgetl.bench.fidelity import drop_interval, fidelity_report, fidelity_text
from edgetl.bench.measure import Side, measure_cold_start, measure_latency
from edgetl.bench.result import Entry, latency_ms, paired_ratio, result_to_dict
from edgetl.bench.stage import BenchConfig, Contender, bench, native, settings_to_dict

__all__ = [
    "BenchConfig",
    "Contender",
    "Entry",
    "Side",
    "answers",
    "bench",
    "drop_interval",
    "fidelity_report",
    "fidelity_text",
    "label_indices",
    "latency_ms",
    "measure_cold_start",
    "measure_latency",
    "native",
    "paired_ratio",
    "result_to_dict",
    "scores",
    "settings_to_dict",
]
