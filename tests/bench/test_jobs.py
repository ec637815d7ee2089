"""What a measuring process does, on the smallest bundle and in this process."""

import time

import pytest
from PIL import Image
from tiny import noise

from edgetl.bench import jobs
from edgetl.bench.measure import Side, _run, measure_latency, measure_offline, measure_paced, prepare
from edgetl.errors import EngineError


def job(bundle, *variants, **fields):
    sides = [{"bundle": str(bundle), "variant": name, "engine": "cpu"} for name in variants]
    return {"sides": sides, "order": list(range(len(sides))), "threads": 1, **fields}


def test_sides_are_called_equally_often_and_follow_each_other_equally_often():
    rounds = jobs._Rounds(3)
    follows = {}
    last = None
    for _ in range(3000):
        for index in rounds.next():
            if last is not None:
                follows[last, index] = follows.get((last, index), 0) + 1
            last = index
    same = [follows[i, i] for i in range(3)]
    other = [count for (a, b), count in follows.items() if a != b]
    assert max(same) < 1.15 * min(same)
    assert max(other) < 1.15 * min(other)


def test_latency_has_pairs_states_and_a_warm_up(tiny_bundle):
    found = jobs.JOBS["latency"](job(tiny_bundle, "fp32", "int8-x86", "fp32", seconds=0.05))
    assert len({len(side) for side in found["samples_ns"]}) == 1
    assert len(found["samples_ns"][0]) >= 20
    assert min(map(min, found["samples_ns"])) > 0
    before, after = found["states"]
    assert after["at"] - before["at"] >= 0.05
    assert isinstance(found["steady"], bool)


def test_pictures_come_at_the_cameras_rate(tiny_bundle):
    start = time.perf_counter()
    found = jobs.JOBS["paced"](job(tiny_bundle, "fp32", "fp32", seconds=0.1, fps=100.0))
    assert [len(side) for side in found["samples_ns"]] == [20, 20]
    assert time.perf_counter() - start > 40 / 100


def test_a_model_slower_than_the_camera_is_late(tiny_bundle, monkeypatch):
    slow = jobs._calls
    monkeypatch.setattr(jobs, "_calls", lambda sides: [lambda: time.sleep(0.02) for _ in slow(sides)])
    monkeypatch.setattr(jobs, "_warm_up", lambda calls: True)
    found = jobs.JOBS["paced"](job(tiny_bundle, "fp32", seconds=0.1, fps=100.0))
    assert found["late"] == [20]


def test_every_batch_size_that_an_engine_takes(tiny_bundle):
    [found] = jobs.JOBS["offline"](job(tiny_bundle, "fp32", seconds=0.05, batches=[1, 4, 1000]))["batches_ns"]
    assert set(found) == {"1", "4"}
    assert min(map(len, found.values())) >= 3


def test_stages_add_up_to_what_a_picture_takes(tiny_bundle, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise(200, 300)).save(path)
    [found] = jobs.JOBS["stages"](job(tiny_bundle, "fp32", pictures=[str(path)] * 5))["stages_ns"]
    assert list(found) == ["decode", "preprocess", "infer", "postprocess"]
    assert {len(samples) for samples in found.values()} == {5}
    assert min(found["decode"]) > min(found["postprocess"])  # 180 kB of PNG against three numbers


def test_processes_of_their_own(tiny_bundle):
    sides = [Side(tiny_bundle, "fp32"), Side(tiny_bundle, "int8-x86")]
    seen = []
    timed = measure_latency(
        sides, processes=2, seconds=0.05, on_progress=lambda done, total: seen.append((done, total))
    )
    assert [len(side) for side in timed.samples_ns] == [2, 2]
    assert seen == [(1, 2), (2, 2)]
    more = measure_latency(sides, processes=1, seconds=0.05, timed=timed)
    assert [len(side) for side in more.samples_ns] == [3, 3]
    assert len(more.periods) == 3
    assert prepare(Side(tiny_bundle, "", "auto"))["variant"] == "int8-x86"
    paced = measure_paced(sides[:1], fps=200, seconds=0.05)
    assert len(paced["samples_ns"][0]) == 20
    assert list(measure_offline(sides[:1], batches=[2], seconds=0.05)[0]) == [2]


def test_a_process_that_fails_is_quoted(tiny_bundle):
    with pytest.raises(EngineError, match=r'has no variant "int4"'):
        measure_latency([Side(tiny_bundle, "int4")], processes=1, seconds=0.05)


def test_a_process_that_takes_too_long_is_ended(tiny_bundle):
    start = time.perf_counter()
    with pytest.raises(EngineError, match=r"took more than 1 s; compare fewer --variant at once"):
        _run({"kind": "paced", "fps": 0.1, "seconds": 0, "threads": 1}, [Side(tiny_bundle, "fp32")], timeout=1)
    assert time.perf_counter() - start < 30
