"""edgetl.bench.result: statistics derived from samples, worked by hand; JSON there and back."""

from __future__ import annotations

import json

import pytest

from edgetl.bench.compare import Comparison
from edgetl.bench.conditions import Conditions
from edgetl.bench.result import FORMAT_VERSION, Entry, Result, latency_ms, paired_ratio, read_result
from edgetl.errors import InputError

ENTRY = Entry(
    bundle="parts.edgetl",
    digest="d" * 64,
    variant="int8-x86",
    engine="cpu",
    samples_ns=[[1_000_000, 3_000_000], [2_000_000]],
    bytes=1234,
    accuracy={"top1": 0.9, "flip_rate": None},
    cold_start={"load_ms": 5.0, "peak_bytes": 50_000_000},
    comparison=Comparison(0.5, 0.4, 0.6, 0.01, 2),
    paced={"fps": 30.0, "samples_ns": [4_000_000, 6_000_000], "late": 1},
    batches_ns={1: [1_000_000], 8: [4_000_000, 2_000_000, 5_000_000]},
    stages_ns={"decode": [1_000_000, 3_000_000, 2_000_000], "infer": [500_000]},
    energy=[{"meter": "rails", "joules_each": 0.002, "problem": None}],
    report={"fidelity": {"flip_rate": 0.1}},
    notes=("busy machine",),
)
RESULT = Result(
    {"cpu": "one", "machine": "m"}, {"threads": 1, "data": []}, (ENTRY, ENTRY), Conditions(("hot",), ("busy",)), "now"
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
    assert data["latency_ratio"] == 0.5
    assert data["comparison"]["text"] == "50.0% faster (ratio 0.500, 95 % interval 0.400 to 0.600)"
    assert data["paced"]["latency_ms"]["p50"] == 5.0
    assert [row["images_per_s"] for row in data["offline"]] == [1000.0, 2000.0]
    assert data["stages_ms"] == {"decode": 2.0, "infer": 0.5}
    assert data["notes"] == ["busy machine"]


def test_entry_without_measurement_says_null():
    data = Entry("b", "d", "int8-arm", "", [], 1, {}).to_dict()
    nothing = ("latency_ms", "throughput_ips", "latency_ratio", "cold_start", "comparison", "paced")
    assert [data[name] for name in nothing] == [None] * 6
    assert (data["samples_ns"], data["offline"], data["energy"], data["notes"]) == ([], [], [], [])


def test_the_first_entry_is_one_times_itself():
    assert Entry("b", "d", "fp32", "cpu", [[1]], 1, {}).latency_ratio == 1.0


def test_a_result_comes_back_from_its_file(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(RESULT.to_dict()))
    assert read_result(path) == RESULT
    assert FORMAT_VERSION == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds the results of several devices"),
        ("5", "has format_version None"),
        ('{"format_version": 1}', "has format_version 1, this edgetl reads 2: measure it again"),
        ('{"format_version": 2}', "is no result of edgetl bench"),
        ('{"format_version": 2, "conditions": 5}', "is no result of edgetl bench"),
    ],
)
def test_a_file_that_is_no_result_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_result(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_result(tmp_path / "none.json")
