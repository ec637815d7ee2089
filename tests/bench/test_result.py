"""edgetl.bench.result: statistics derived from samples, worked by hand."""

from __future__ import annotations

import json

import pytest

from edgetl.bench.result import FORMAT_VERSION, Entry, latency_ms, paired_ratio, result_to_dict

ENTRY = Entry(
    bundle="parts.edgetl",
    digest="d" * 64,
    variant="int8-x86",
    engine="cpu",
    samples_ns=[[1_000_000, 3_000_000], [2_000_000]],
    bytes=1234,
    accuracy={"top1": 0.9, "flip_rate": None},
    cold_start={"load_ms": 5.0},
    latency_ratio=0.5,
    notes=("busy machine",),
)


def test_latency_is_over_all_processes_in_milliseconds():
    assert latency_ms([[1_000_000, 3_000_000], [2_000_000]]) == pytest.approx(
        {"p50": 2.0, "p90": 2.8, "p99": 2.98, "mean": 2.0}
    )
    assert latency_ms([[5_000_000]]) == {"p50": 5.0, "p90": 5.0, "p99": 5.0, "mean": 5.0}


def test_latency_of_one_slow_call_shows_in_the_tail_alone():
    latency = latency_ms([[1_000_000] * 99 + [101_000_000]])
    assert latency["p50"] == latency["p90"] == 1.0
    assert latency["p99"] == pytest.approx(2.0)
    assert latency["mean"] == pytest.approx(2.0)


@pytest.mark.parametrize("samples", [[], [[]], [[], []]])
def test_no_samples_give_no_latency(samples):
    assert latency_ms(samples) is None


def test_paired_ratio_is_the_median_of_medians():
    ours = [[10, 20, 90], [5, 5, 5], [30]]
    theirs = [[10, 10, 10], [10, 10, 10], [10]]  # medians 2, 0.5 and 3
    assert paired_ratio(ours, theirs) == 2.0


def test_paired_ratio_does_not_see_what_slows_both():
    reference = [[100, 100, 700, 100], [300, 500, 100, 100]]
    assert paired_ratio([[n // 2 for n in process] for process in reference], reference) == 0.5


def test_paired_ratio_leaves_out_what_is_no_pair():
    assert paired_ratio([[10, 20], [8]], [[10], [4]]) == 2.0
    assert paired_ratio([[], [8]], [[], [4]]) == 2.0
    assert paired_ratio([[10, 20]], [[10]]) is None
    assert paired_ratio([], []) is None


def test_entry_as_json_holds_samples_and_statistics():
    data = ENTRY.to_dict()

    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["samples_ns"] == [[1_000_000, 3_000_000], [2_000_000]]
    assert data["latency_ms"] == latency_ms(ENTRY.samples_ns)
    assert data["throughput_ips"] == pytest.approx(500.0)
    assert {k: v for k, v in data.items() if k not in ("samples_ns", "latency_ms", "throughput_ips")} == {
        "bundle": "parts.edgetl",
        "digest": "d" * 64,
        "variant": "int8-x86",
        "engine": "cpu",
        "latency_ratio": 0.5,
        "bytes": 1234,
        "accuracy": {"top1": 0.9, "flip_rate": None},
        "cold_start": {"load_ms": 5.0},
        "notes": ["busy machine"],
    }


def test_entry_without_measurement_says_null():
    data = Entry("b", "d", "int8-arm", "cpu", [], 1, {}).to_dict()
    assert (data["latency_ms"], data["throughput_ips"], data["latency_ratio"], data["cold_start"]) == (None,) * 4
    assert (data["samples_ns"], data["notes"]) == ([], [])


def test_whole_result():
    result = result_to_dict({"cpu": "one"}, [ENTRY, ENTRY], {"threads": 1})

    assert result == {
        "format_version": FORMAT_VERSION,
        "host": {"cpu": "one"},
        "settings": {"threads": 1},
        "results": [ENTRY.to_dict()] * 2,
    }
    assert FORMAT_VERSION == 1
