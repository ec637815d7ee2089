"""A history's lines, its series, and change points planted in noise."""

import dataclasses
import json
import threading

import numpy as np
import pytest
from bench.test_result import RESULT

from edgetl.bench.conditions import Conditions
from edgetl.bench.history import append_history, changes, read_history
from edgetl.cli.main import run
from edgetl.errors import InputError

WHEN = [f"2026-01-{day:02}T00:00:00+00:00" for day in range(1, 29)]


def grown(path, levels, seed=0):
    """A history of one model whose median is at these levels, with 1 % of noise."""
    rng = np.random.default_rng(seed)
    for when, level in zip(WHEN, levels, strict=False):
        ns = round(level * 1e6 * rng.lognormal(0, 0.01))
        entry = dataclasses.replace(RESULT.entries[0], samples_ns=[[ns] * 3] * 3)
        fit = dataclasses.replace(RESULT, entries=(entry,), created=when, conditions=Conditions())
        append_history(path, fit)


def test_a_result_becomes_a_line_for_each_model(tmp_path):
    path = tmp_path / "deep" / "h.jsonl"
    assert append_history(path, RESULT) == 2
    first = json.loads(path.read_text().splitlines()[0])
    assert (first["p50_ms"], first["machine"], first["valid"], first["top1"]) == (2.0, "m", False, 0.9)
    assert first["processes_p50_ms"] == [2.0, 2.0]


def test_runs_at_once_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "h.jsonl"
    threads = [threading.Thread(target=append_history, args=(path, RESULT)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [series] = read_history(path)
    assert len(series.records) == 40


def test_machines_are_never_put_together(tmp_path):
    path = tmp_path / "h.jsonl"
    append_history(path, RESULT)
    append_history(path, dataclasses.replace(RESULT, host={"cpu": "two", "machine": "other"}))
    assert sorted(series.machine for series in read_history(path)) == ["m", "other"]


def test_planted_changes_are_named_and_noise_is_not():
    rng = np.random.default_rng(0)
    steps = [np.array([10.0] * 8 + [10.5] * 8 + [9.0] * 8) * rng.lognormal(0, 0.01, 24) for _ in range(30)]
    found = [[c.at for c in changes(values)] for values in steps]
    assert sum(at[:2] == [8, 16] or (len(at) == 2 and abs(at[0] - 8) <= 1 and at[1] == 16) for at in found) >= 27
    flat = [changes(10 * rng.lognormal(0, 0.01, 20)) for _ in range(60)]
    assert sum(bool(c) for c in flat) <= 8  # 5 % of 60, and three standard errors
    assert changes(np.array([1.0] * 20)) == []
    assert changes(np.array([1.0, 2.0, 3.0])) == []


def test_timings_of_an_invalid_run_are_no_part_of_the_trend(tmp_path):
    path = tmp_path / "h.jsonl"
    append_history(path, RESULT)
    unknown = dataclasses.replace(RESULT, host={"cpu": "one", "machine": None}, conditions=Conditions())
    append_history(tmp_path / "c.jsonl", unknown)  # a container: it may be any machine
    [somewhere] = read_history(tmp_path / "c.jsonl")
    assert [len(somewhere.values(metric)[1]) for metric in ("p50", "top1")] == [0, 2]
    [series] = read_history(path)
    assert len(series.values("p50")[1]) == 0
    assert len(series.values("top1")[1]) == 2


def test_other_threads_are_another_series(tmp_path):
    path = tmp_path / "h.jsonl"
    append_history(path, RESULT)
    append_history(path, dataclasses.replace(RESULT, settings={"threads": 4, "data": []}))
    assert [series.name for series in read_history(path)] == [
        "parts.edgetl int8-x86 cpu", "parts.edgetl int8-x86 cpu 4 threads",
    ]  # fmt: skip


def test_one_outlier_is_no_level():
    values = np.array([10.0, 10.1, 9.9, 10.0, 10.1, 14.0, 10.0, 9.9, 10.1, 10.0, 9.9, 10.0])
    assert changes(values) == []


def test_the_command_draws_and_names(tmp_path, capsys):
    path = tmp_path / "h.jsonl"
    grown(path, [10] * 8 + [12] * 6)
    assert run(["history", str(path), "--json", str(tmp_path / "o.json")]) == 0
    out = capsys.readouterr().out
    assert "parts.edgetl int8-x86 cpu, p50: 14 runs" in out
    assert "changed at run 9 (2026-01-09T00:00:00+00:00" in out
    assert "worse)" in out
    assert "|" in out
    [p50, top1] = json.loads((tmp_path / "o.json").read_text())
    assert [c["at"] for c in p50["changes"]] == [8]
    assert p50["changes"][0]["after"] / p50["changes"][0]["before"] == pytest.approx(1.2, rel=0.02)
    assert top1["changes"] == []


@pytest.mark.parametrize("line", ["{", "5", '{"format_version": 1}', '{"format_version": 9, "created": ""}'])
def test_a_line_that_is_none_is_refused_by_its_number(tmp_path, capsys, line):
    path = tmp_path / "h.jsonl"
    append_history(path, RESULT)
    with path.open("a") as file:
        file.write(f"{line}\n")
    assert run(["history", str(path)]) == 2
    assert f"{path}:3: is" in capsys.readouterr().err
    with pytest.raises(InputError, match="edgetl bench --history"):
        read_history(tmp_path / "none.jsonl")
