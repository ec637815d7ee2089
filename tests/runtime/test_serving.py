"""Requests of many threads: batches, queue, deadlines, the end, and what is counted."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tiny import encoded, hollow_graph, noise, tiny_graph, write_tiny_bundle

import edgetl
from edgetl.bundle import Decision
from edgetl.errors import DeadlineExceeded, EngineError, InputError, Overloaded, PictureError
from edgetl.runtime import Batching, Prediction
from edgetl.runtime.batcher import Batcher, _Pace
from edgetl.runtime.meters import Meters

RED, GREEN = (np.full((16, 16, 3), color, np.uint8) for color in ((255, 0, 0), (0, 255, 0)))


class Gate:
    """A session that waits until it is told to go on, and keeps the sizes of its batches."""

    def __init__(self, session):
        self._session = session
        self.spec, self.max_batch = session.spec, session.max_batch
        self.open = threading.Event()
        self.entered = threading.Event()
        self.sizes = []
        self.closed = False

    def infer(self, batch):
        self.sizes.append(len(batch))
        self.entered.set()
        assert self.open.wait(20)
        return self._session.infer(batch)

    def close(self):
        self.closed = True
        self._session.close()


@pytest.fixture
def gated(tiny_bundle):
    """Gives a loader of classifiers whose engine waits."""
    opened = []

    def load(**settings):
        classify = edgetl.load(tiny_bundle, batching=Batching(workers=1, **settings))
        gate = classify._served.held.session = Gate(classify.session)
        opened.append((classify, gate))
        return classify, gate

    yield load
    for classify, gate in opened:
        gate.open.set()
        classify.close()


def test_what_came_while_the_engine_was_busy_is_one_batch(gated):
    classify, gate = gated(max_batch=4)
    first = classify.submit(RED)
    assert gate.entered.wait(20)
    rest = [classify.submit(GREEN if i % 2 else RED) for i in range(6)]
    gate.open.set()
    assert first.result(20).label == "red"
    assert [f.result(20).label for f in rest] == ["red", "green"] * 3
    assert gate.sizes == [1, 4, 2]
    found = classify.metrics()
    assert found["pictures"] == 7
    assert found["batch_pictures"] == {
        "count": 3, "sum": 7.0, "buckets": {"1": 1, "2": 2, "4": 3, "8": 3, "16": 3, "32": 3, "64": 3, "+Inf": 3}
    }  # fmt: skip


def test_a_batch_waits_for_others_as_long_as_it_was_told(gated):
    classify, gate = gated(max_batch=3, max_wait_ms=20_000)
    gate.open.set()
    answers = [classify.submit(RED) for _ in range(3)]
    assert all(f.result(10).label == "red" for f in answers)
    assert gate.sizes == [3]


def test_one_unreadable_picture_fails_alone(gated):
    classify, gate = gated()
    blocked = classify.submit(RED)
    assert gate.entered.wait(20)
    mixed = [classify.submit(p) for p in (RED, b"no picture", GREEN)]
    gate.open.set()
    blocked.result(20)
    assert [mixed[0].result(20).label, mixed[2].result(20).label] == ["red", "green"]
    with pytest.raises(PictureError, match="is not a picture"):
        mixed[1].result(20)
    assert classify.metrics()["picture_errors"] == 1


def test_a_full_queue_refuses_and_what_waits_is_answered(gated):
    classify, gate = gated(max_queue=2)
    running = classify.submit(RED)
    assert gate.entered.wait(20)
    waiting = [classify.submit(RED) for _ in range(2)]
    with pytest.raises(Overloaded, match=r"^2 requests wait already; try again later, or raise max_queue$"):
        classify.submit(RED)
    gate.open.set()
    assert all(f.result(20).label == "red" for f in (running, *waiting))
    assert classify.metrics()["overloaded"] == 1


def test_deadlines_and_cancelling(gated):
    classify, gate = gated()
    classify.submit(RED)
    assert gate.entered.wait(20)
    late = classify.submit(RED, deadline_ms=1)
    cancelled = classify.submit(RED)
    good = classify.submit(GREEN, deadline_ms=60_000)
    assert cancelled.cancel()
    time.sleep(0.01)
    gate.open.set()
    assert good.result(20).label == "green"
    with pytest.raises(DeadlineExceeded, match=r"^waited for \d+ of 1 ms: an answer would come too late$"):
        late.result(20)
    with pytest.raises(CancelledError):
        cancelled.result(20)
    assert gate.sizes == [1, 1]
    found = classify.metrics()
    assert (found["cancelled"], found["deadlines_exceeded"], found["pictures"]) == (1, 1, 2)


def test_what_would_be_answered_too_late_is_not_begun():
    sizes = []

    def answer(pictures):
        sizes.append(len(pictures))
        time.sleep(0.3)
        return [Prediction("red", 1.0, np.ones(1, np.float32), ("red",))] * len(pictures)

    batcher = Batcher(answer, Batching(workers=1), Meters())
    try:
        batcher.submit(RED, None).result(20)  # so much it takes
        running = batcher.submit(RED, None)
        time.sleep(0.05)
        hurried, patient = batcher.submit(RED, 360), batcher.submit(RED, 20_000)
        with pytest.raises(DeadlineExceeded, match="of 360 ms: an answer would come too late"):
            hurried.result(20)
        assert running.result(20).label == patient.result(20).label == "red"
        assert sizes == [1, 1, 1]
        assert batcher.submit(RED, 100).result(20).label == "red"  # an idle engine tries what it can hardly do
    finally:
        batcher.close()


def test_late_requests_take_no_places_in_a_batch(gated):
    classify, gate = gated(max_batch=4)
    classify.submit(RED)
    assert gate.entered.wait(20)
    late = [classify.submit(RED, deadline_ms=1) for _ in range(4)]
    good = [classify.submit(GREEN) for _ in range(4)]
    time.sleep(0.01)
    gate.open.set()
    assert [f.result(20).label for f in good] == ["green"] * 4
    assert all(isinstance(f.exception(20), DeadlineExceeded) for f in late)
    assert gate.sizes == [1, 4]


def test_what_was_taken_out_of_a_full_queue_is_answered_for_even_if_batches_become_faster_meanwhile(gated):
    classify, gate = gated(max_queue=2)
    running = classify.submit(RED)
    assert gate.entered.wait(20)
    pace = classify._batcher._pace
    pace.seconds = 60.0
    waiting = [classify.submit(RED, deadline_ms=50) for _ in range(2)]
    time.sleep(0.03)  # half of the deadline is over: 60 seconds are too many
    waiting[0].add_done_callback(lambda _: setattr(pace, "seconds", 0.0))
    last = classify.submit(GREEN)
    assert all(isinstance(f.exception(5), DeadlineExceeded) for f in waiting)
    gate.open.set()
    assert [running.result(20).label, last.result(20).label] == ["red", "green"]


def test_a_batch_that_forms_begins_earlier_when_batches_turn_out_slow():
    """Two workers: the first's batch lasts, and the second's has to begin that much before its deadline."""
    batcher = Batcher(
        lambda pictures: time.sleep(0.4) or [Prediction("red", 1.0, np.ones(1, np.float32), ("red",))] * len(pictures),
        Batching(workers=2, max_batch=2, max_wait_ms=20_000),
        Meters(),
    )
    try:
        first = [batcher.submit(RED, None) for _ in range(2)]
        lonely = batcher.submit(RED, 1_500)
        assert [f.result(20).label for f in (*first, lonely)] == ["red"] * 3
    finally:
        batcher.close()


def test_a_batch_is_no_longer_than_half_the_shortest_deadline_in_it(gated):
    classify, gate = gated(max_batch=8)
    running = classify.submit(RED)
    assert gate.entered.wait(20)
    pace = classify._batcher._pace
    pace.seconds, pace.learn = 5.0, lambda *_: None
    hurried = [classify.submit(RED, deadline_ms=30_000) for _ in range(4)]
    patient = [classify.submit(GREEN) for _ in range(3)]
    gate.open.set()
    assert [f.result(20).label for f in (running, *hurried, *patient)] == ["red"] * 5 + ["green"] * 3
    assert gate.sizes == [1, 3, 3, 1]  # the fourth of the hurried goes with two of the patient


def test_what_batches_take_is_learned_from_the_second_on():
    pace = _Pace()
    for seconds, pictures, expected in ((3.0, 1, 3.0), (0.4, 4, 0.1), (0.2, 1, 0.12)):
        pace.learn(seconds, pictures)
        assert pace.seconds == pytest.approx(expected)


def test_a_lonely_request_is_begun_before_its_deadline(gated):
    classify, gate = gated(max_wait_ms=10_000)
    gate.open.set()
    for deadline_ms in (400, 40):
        begun = time.perf_counter()
        assert classify.submit(RED, deadline_ms=deadline_ms).result(20).label == "red"
        assert time.perf_counter() - begun > deadline_ms / 2e3  # it waited for others as long as it could


def test_a_later_request_with_an_earlier_deadline_is_not_kept_waiting(gated):
    classify, gate = gated(max_wait_ms=10_000)
    gate.open.set()
    patient = classify.submit(GREEN)
    assert classify.submit(RED, deadline_ms=400).result(5).label == "red"
    assert patient.result(5).label == "green"
    assert gate.sizes == [2]


def test_what_nobody_waits_for_makes_room_in_a_full_queue(gated):
    classify, gate = gated(max_queue=3)
    running = classify.submit(RED)
    assert gate.entered.wait(20)
    waiting = [classify.submit(RED), classify.submit(RED, deadline_ms=1), classify.submit(RED)]
    assert waiting[2].cancel()
    time.sleep(0.01)
    more = [classify.submit(GREEN) for _ in range(2)]
    with pytest.raises(DeadlineExceeded):
        waiting[1].result(0)
    with pytest.raises(Overloaded):
        classify.submit(RED)
    gate.open.set()
    assert [f.result(20).label for f in (running, waiting[0], *more)] == ["red", "red", "green", "green"]
    found = classify.metrics()
    assert (found["cancelled"], found["deadlines_exceeded"], found["overloaded"]) == (1, 1, 1)
    assert gate.sizes == [1, 3]


def test_a_cancelled_task_takes_its_request_back(gated):
    classify, gate = gated(max_queue=1)

    async def ask():
        running = asyncio.create_task(classify.answer(RED))
        assert await asyncio.to_thread(gate.entered.wait, 20)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(classify.answer(GREEN), 0.01)
        other = asyncio.create_task(classify.answer(GREEN))  # there is room again
        await asyncio.sleep(0)
        gate.open.set()
        return (await running).label, (await other).label

    assert asyncio.run(ask()) == ("red", "green")
    assert classify.metrics()["cancelled"] == 1


@pytest.mark.parametrize("drain", [True, False])
def test_closing_answers_or_cancels_what_waits(gated, drain):
    classify, gate = gated()
    running = classify.submit(RED)
    assert gate.entered.wait(20)
    waiting = [classify.submit(GREEN) for _ in range(5)]
    closing = threading.Thread(target=classify.close, kwargs={"drain": drain})
    closing.start()
    while not classify._closing:
        time.sleep(0.001)
    with pytest.raises(EngineError, match="this classifier is closed"):
        classify.submit(RED)
    gate.open.set()
    closing.join(20)
    assert not closing.is_alive()
    assert running.result(0).label == "red"
    if drain:
        assert [f.result(0).label for f in waiting] == ["green"] * 5
    else:
        assert all(f.cancelled() for f in waiting)
    assert gate.closed
    assert not [t for t in threading.enumerate() if t.name.startswith("edgetl-batch")]


def test_two_who_close_at_once_break_no_drain(gated):
    classify, gate = gated()
    running = classify.submit(RED)
    assert gate.entered.wait(20)
    waiting = [classify.submit(GREEN) for _ in range(20)]
    closing = [threading.Thread(target=classify.close) for _ in range(3)]
    for thread in closing:
        thread.start()
    time.sleep(0.05)
    assert all(thread.is_alive() for thread in closing)
    gate.open.set()
    for thread in closing:
        thread.join(20)
        assert not thread.is_alive()
    assert running.result(0).label == "red"
    assert [f.result(0).label for f in waiting] == ["green"] * 20
    assert gate.closed


def test_a_callback_may_close_while_another_thread_does(gated):
    classify, gate = gated()
    first = classify.submit(RED)
    first.add_done_callback(lambda _: classify.close())
    assert gate.entered.wait(20)
    last = classify.submit(GREEN)
    closing = threading.Thread(target=classify.close)
    closing.start()
    while not classify._closing:
        time.sleep(0.001)
    gate.open.set()
    closing.join(20)
    assert not closing.is_alive()
    assert (first.result(0).label, last.result(0).label) == ("red", "green")


def test_asyncio(tiny_bundle):
    async def ask(classify):
        answers = await asyncio.gather(*(classify.answer(RED if i % 2 else GREEN) for i in range(20)))
        with pytest.raises(PictureError):
            await classify.answer(b"")
        return [a.label for a in answers]

    with edgetl.load(tiny_bundle) as classify:
        assert asyncio.run(ask(classify)) == ["green", "red"] * 10


def test_hundreds_of_threads_get_their_own_answers(tiny_bundle):
    pictures = [encoded(Image.fromarray(noise(20, 20, seed=i)), "PNG") for i in range(40)]
    with edgetl.load(tiny_bundle, threads=1, batching=Batching(max_queue=1000)) as classify:
        alone = [classify(p).scores for p in pictures]

        def ask(i):
            submitted = classify.submit(pictures[i % 40])
            return np.allclose(classify(pictures[i % 40]).scores, alone[i % 40], atol=1e-6) and np.allclose(
                submitted.result(60).scores, alone[i % 40], atol=1e-6
            )

        with ThreadPoolExecutor(300) as pool:
            assert all(pool.map(ask, range(900)))
        assert classify.metrics()["pictures"] == 40 + 1800


def test_the_engines_failure_reaches_all_it_concerns_and_no_others(tiny_bundle):
    with edgetl.load(tiny_bundle, batching=Batching(workers=1)) as classify:
        session = classify.session
        broken = Gate(session)
        broken.infer = lambda batch: (_ for _ in ()).throw(EngineError("ONNX Runtime failed (on purpose)"))
        classify._served.held.session = broken
        with pytest.raises(EngineError, match="on purpose"):
            classify.submit(RED).result(20)
        classify._served.held.session = session
        assert classify.submit(RED).result(20).label == "red"
        assert classify.metrics()["engine_errors"] == 1


def test_numbers_that_are_not_finite_are_an_error_not_an_answer(tmp_path):
    root = write_tiny_bundle(tmp_path / "nan", graph=tiny_graph(bias=np.array([0, np.nan, 0], np.float32)))
    with edgetl.load(root) as classify, pytest.raises(EngineError, match="numbers that are not finite"):
        classify(RED)


def test_a_picture_without_a_finite_answer_fails_alone(tmp_path):
    root = write_tiny_bundle(tmp_path / "hollow", graph=hollow_graph())
    black = np.zeros((16, 16, 3), np.uint8)
    with edgetl.load(root, batching=Batching(workers=1)) as classify:
        gate = classify._served.held.session = Gate(classify.session)
        first = classify.submit(RED)
        assert gate.entered.wait(20)
        mixed = [classify.submit(picture) for picture in (RED, black, GREEN)]
        gate.open.set()
        assert [first.result(20).label, mixed[0].result(20).label, mixed[2].result(20).label] == ["red", "red", "green"]
        assert gate.sizes == [1, 3]
        for ask in (mixed[1].result, lambda: classify(black), lambda: classify.batch([RED, black])):
            with pytest.raises(EngineError, match="numbers that are not finite"):
                ask()
        assert classify.metrics()["engine_errors"] == 3
        assert classify(RED).label == "red"


def test_unlikely_pictures_show_none_of_the_classes(tmp_path):
    made = {"fp32": Decision(temperature=2.0, min_log_odds=math.log(0.7 / 0.3))}
    root = write_tiny_bundle(tmp_path / "sure", decisions=made)
    grey = np.full((16, 16, 3), 128, np.uint8)
    with edgetl.load(root) as classify, edgetl.load(write_tiny_bundle(tmp_path / "plain")) as plain:
        assert (classify(RED).label, classify(grey).label) == ("red", None)
        warm = np.sqrt(plain(grey).scores)  # a temperature of two takes the root of every probability
        np.testing.assert_allclose(classify(grey).scores, warm / warm.sum(), rtol=1e-5)
        assert classify(grey).top(1)[0][1] == classify(grey).confidence == classify(grey).scores.max()
        assert classify.metrics()["unknown"] == 5


@pytest.mark.parametrize("labels", [{}, {"camera": 'the "left"\none'}])
def test_prometheus_text(tiny_bundle, tmp_path, labels):
    other = write_tiny_bundle(tmp_path / "other.edgetl", labels=("x", "y", "z"))
    own = r'camera="the \"left\"\none"' if labels else ""
    of_all = f"{{{own}}}" if labels else ""
    with edgetl.load(tiny_bundle) as classify:
        classify(RED)
        for root in (tiny_bundle, other):
            classify.reload(root)
            classify.submit(RED).result(20)
            lines = classify.prometheus(labels).splitlines()
            samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            [info] = [name for name in samples if name.startswith("edgetl_model_info")]
            told = f'model="{root.name}",variant="{classify.variant}",engine="cpu",digest="{classify.digest}"'
            assert (info, samples[info]) == (f"edgetl_model_info{{{own + ',' if own else ''}{told}}}", "1")
    assert samples[f"edgetl_pictures_total{of_all}"] == "3"  # of both models: a counter never goes back
    assert samples[f"edgetl_reloads_total{of_all}"] == "2"
    assert samples[f'edgetl_classify_seconds_bucket{{{own + "," if own else ""}le="+Inf"}}'] == "1"
    assert samples[f"edgetl_submit_seconds_count{of_all}"] == "2"
    names = {line.split("{")[0] for line in samples}
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {n.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for n in names} == typed


def test_a_forked_process_is_told_to_load_its_own(tiny_bundle):
    with edgetl.load(tiny_bundle) as classify:
        assert classify.submit(RED).result(20).label == "red"
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover
            try:
                classify(RED)
            except EngineError as error:
                os.write(write, str(error).encode())
            classify.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert b"forked after edgetl.load; call edgetl.load in each process" in os.read(read, 1000)
        os.close(read)
        os.close(write)
        assert classify(RED).label == "red"


def test_settings_that_mean_nothing_are_refused():
    for wrong in ({"max_batch": 0}, {"max_wait_ms": -1}, {"max_queue": 0}, {"workers": -1}, {"max_wait_ms": np.nan}):
        with pytest.raises(InputError, match=f"batching {next(iter(wrong))} is"):
            Batching(**wrong)


def test_memory_is_given_back(tiny_bundle):
    with edgetl.load(tiny_bundle) as classify:
        classify.submit(RED).result(20)
    left = weakref.ref(classify)
    del classify
    gc.collect()
    assert left() is None
