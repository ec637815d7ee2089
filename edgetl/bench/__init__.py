"""Honest comparison of bundles: accuracy, latency, size, memory, cold start, energy."""

from edgetl.bench.accuracy import answers, label_indices, scores
from edgetl.bench.against import bench_against
from edgetl.bench.fidelity import drop_interval, fidelity_report, fidelity_text
from edgetl.bench.gate import Limits, answer_checks, baseline_checks, fp32_checks, recall_checks
from edgetl.bench.measure import Side, measure_cold_start, measure_latency
from edgetl.bench.result import Entry, Result, latency_ms, paired_ratio, read_result
from edgetl.bench.stage import BenchConfig, Contender, bench, native
from edgetl.bench.verdict import Check, Verdict

__all__ = [
    "BenchConfig",
    "Check",
    "Contender",
    "Entry",
    "Limits",
    "Result",
    "Side",
    "Verdict",
    "answer_checks",
    "answers",
    "baseline_checks",
    "bench",
    "bench_against",
    "drop_interval",
    "fidelity_report",
    "fidelity_text",
    "fp32_checks",
    "label_indices",
    "latency_ms",
    "measure_cold_start",
    "measure_latency",
    "native",
    "paired_ratio",
    "read_result",
    "recall_checks",
    "scores",
]
