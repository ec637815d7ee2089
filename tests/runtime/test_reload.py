"""Models exchanged under load: nothing lost, nothing of two models, and a bad one never serves."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time

import numpy as np
import pytest
from tiny import TINY_BIAS, TINY_WEIGHT, tiny_graph, write_tiny_bundle

import edgetl
from edgetl.artifacts import new_folder
from edgetl.bundle import Bundle
from edgetl.errors import BundleError, EngineError
from edgetl.runtime import Batching
from edgetl.runtime.checking import Checking
from edgetl.runtime.ort import OrtSession
from edgetl.runtime.served import Served
from edgetl.runtime.watcher import Watcher

RED = np.full((16, 16, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def two(tmp_path):
    """A model, and another that turns classes round and knows other names."""
    other = tiny_graph(TINY_WEIGHT[::-1].copy(), TINY_BIAS[::-1].copy())
    return (
        write_tiny_bundle(tmp_path / "a.edgetl"),
        write_tiny_bundle(tmp_path / "b.edgetl", graph=other, labels=("rot", "grün", "blau")),
    )


def test_reload_serves_the_other_model(two):
    with edgetl.load(two[0]) as classify:
        before = classify(RED)
        first = classify.session
        classify.reload(two[1])
        after = classify(RED)
        assert (before.label, after.label) == ("red", "rot")
        assert after.confidence == pytest.approx(before.confidence)
        assert classify.labels == ("rot", "grün", "blau")
        with pytest.raises(EngineError, match="closed"):
            first.infer(RED[None])
        assert classify.metrics()["reloads"] == 1


def test_a_model_that_will_serve_batches_has_run_one_before_it_serves(two, monkeypatch):
    sizes, infer = [], OrtSession.infer

    def counted(session, batch):
        sizes.append(len(batch))
        return infer(session, batch)

    monkeypatch.setattr(OrtSession, "infer", counted)
    with edgetl.load(two[0], batching=Batching(max_batch=4)) as classify:
        classify.reload(two[1])
        assert sizes == [1]  # nobody has submitted yet
        classify.submit(RED).result(20)
        sizes.clear()
        classify.reload(two[0])
        assert sizes == [1, 4]


def test_under_load_no_answer_is_lost_or_of_two_models(two):
    names = {("blue", "green", "red"): "red", ("rot", "grün", "blau"): "rot"}
    stop = threading.Event()
    wrong, count = [], [0] * 6

    with edgetl.load(two[0], batching=Batching(max_batch=4)) as classify:

        def ask(i):
            while not stop.is_set():
                answer = classify(RED) if i % 2 else classify.submit(RED).result(20)
                count[i] += 1
                if names.get(answer.labels) != answer.label or len(answer.scores) != 3:
                    wrong.append(answer)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for i in range(20):
            classify.reload(two[(i + 1) % 2])
        stop.set()
        for thread in threads:
            thread.join(20)
        assert not wrong
        assert min(count) > 0
        assert classify.metrics()["pictures"] == sum(count)
        assert classify.metrics()["reloads"] == 20


@pytest.mark.parametrize("fault", ["graph", "labels", "missing", "manifest", "nan", "shape"])
def test_a_bad_bundle_leaves_the_old_one_serving(two, tmp_path, fault):
    root = two[1]
    if fault in ("graph", "labels"):
        path = root / {"graph": "model.fp32.onnx", "labels": "labels.txt"}[fault]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif fault == "missing":
        (root / "labels.txt").unlink()
    elif fault == "manifest":
        manifest = json.loads((root / "manifest.json").read_text())
        manifest["spec"]["labels"] = ["x", "y", "z"]
        (root / "manifest.json").write_text(json.dumps(manifest))
    elif fault == "nan":
        root = write_tiny_bundle(tmp_path / "nan", graph=tiny_graph(bias=np.full(3, np.inf, np.float32)))
    else:
        root = write_tiny_bundle(tmp_path / "wide", labels=("a", "b"))
    with edgetl.load(two[0]) as classify:
        with pytest.raises((BundleError, EngineError)):
            classify.reload(root)
        assert classify(RED).label == "red"
        assert (classify.metrics()["reloads_failed"], classify.metrics()["reloads"]) == (1, 0)
        classify.reload(two[0])


def test_whatever_fails_is_counted_and_what_was_opened_is_closed(two, monkeypatch):
    opened = []

    def broken(self, support):
        opened.append(self.session)
        raise RuntimeError("on purpose")

    exemplars = dict.fromkeys(("blue", "green", "red"), np.eye(3, dtype=np.float32) * 255)
    root = write_tiny_bundle(two[0].with_name("c.edgetl"), exemplars=exemplars)
    with edgetl.load(root) as classify:
        classify.learn("white", [np.full((16, 16, 3), 255, np.uint8)])
        monkeypatch.setattr(Served, "taught", broken)
        with pytest.raises(RuntimeError, match="on purpose"):
            classify.reload()
        assert classify(RED).label == "red"
        assert (classify.metrics()["reloads_failed"], classify.metrics()["reloads"]) == (1, 0)
        with pytest.raises(EngineError, match="this session is closed"):
            opened[0].infer(RED[None])


def test_reloads_and_the_end_may_meet(two):
    for _ in range(20):
        classify = edgetl.load(two[0])
        told = []

        def reload(classify=classify, told=told):
            try:
                while True:
                    classify.reload(two[1])
            except EngineError as error:
                told.append(str(error))

        threads = [threading.Thread(target=reload) for _ in range(2)]
        for thread in threads:
            thread.start()
        classify.close()
        for thread in threads:
            thread.join(20)
        assert told == ["this classifier is closed; call edgetl.load again"] * 2
        served = classify._served.held
        assert served.users == 0
        with pytest.raises(EngineError, match="this session is closed"):
            served.session.infer(RED[None])


def test_a_closed_classifier_is_not_brought_back(two):
    classify = edgetl.load(two[0])
    classify.close()
    with pytest.raises(EngineError, match="closed"):
        classify.reload(two[1])


def put(place, source, damage=None):
    """Exchanges what is in a place, in one step."""
    with new_folder(place, force=True) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        if damage is not None:
            (folder / damage).write_bytes(b"damaged")


def wait_until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def place(two, tmp_path, monkeypatch):
    """A copy of the first model, where a watcher looks often."""
    monkeypatch.setattr(Watcher.__init__, "__defaults__", (0.02,))
    place = tmp_path / "served.edgetl"
    shutil.copytree(two[0], place)
    return place


def test_watching_follows_what_is_moved_into_place(two, place, caplog):
    with edgetl.load(place, watch=True) as classify:
        put(place, two[1])
        wait_until(lambda: classify(RED).label == "rot")
        with caplog.at_level(logging.ERROR, "edgetl"):
            put(place, two[0], damage="model.fp32.onnx")
            wait_until(lambda: "is not taken, the one before goes on" in caplog.text)
        assert classify(RED).label == "rot"
        put(place, two[0])
        wait_until(lambda: classify(RED).label == "red")
    assert not [t for t in threading.enumerate() if t.name == "edgetl-watch"]


def test_watching_looks_at_its_own_place_whatever_else_was_loaded(two, place, tmp_path):
    third = write_tiny_bundle(tmp_path / "c.edgetl", labels=("x", "y", "z"))
    with edgetl.load(place, watch=True) as classify:
        classify.reload(two[1])
        time.sleep(0.2)  # nothing was put there: what was asked for stays
        assert classify(RED).label == "rot"
        put(place, third)
        wait_until(lambda: classify(RED).label == "z")
        classify.reload(two[1])
        put(place, third)  # the one that was served from there before, put there anew
        wait_until(lambda: classify(RED).label == "z")


def test_an_exchange_while_it_is_loaded_is_seen(two, place, monkeypatch):
    def exchanged(self):
        check(self)
        monkeypatch.undo()
        monkeypatch.setattr(Watcher.__init__, "__defaults__", (0.02,))
        put(place, two[1])

    check = Checking.result
    monkeypatch.setattr(Checking, "result", exchanged)
    with edgetl.load(place, watch=True) as classify:
        assert classify.labels == ("blue", "green", "red")
        wait_until(lambda: classify(RED).label == "rot")


@pytest.mark.parametrize("watch", [True, False])
def test_an_exchange_between_two_files_begins_again(two, place, monkeypatch, watch):
    def exchanged(bundle, *, but):
        monkeypatch.undo()
        put(place, two[1])
        bundle.verify(but=but)

    check = Bundle.verify
    monkeypatch.setattr(Bundle, "verify", exchanged)
    with edgetl.load(place, watch=watch) as classify:
        assert Bundle.verify is check
        assert classify(RED).label == "rot"


def test_a_bundle_that_is_copied_file_by_file_is_taken_when_it_is_whole(two, place, caplog):
    with edgetl.load(place, watch=True) as classify, caplog.at_level(logging.ERROR, "edgetl"):
        graph = (two[1] / "model.fp32.onnx").read_bytes()
        for name in ("manifest.json", "labels.txt"):
            shutil.copy(two[1] / name, place / name)
        wait_until(lambda: classify.metrics()["reloads_failed"] >= 3)  # the same manifest, tried again
        assert classify(RED).label == "red"
        (place / "model.fp32.onnx").write_bytes(graph)
        wait_until(lambda: classify(RED).label == "rot")
        assert classify.metrics()["reloads"] == 1
    assert caplog.text.count("model.fp32.onnx: is damaged or was replaced") == 1


def test_what_goes_on_failing_is_tried_less_and_less(place):
    tried = []

    def fail(root):
        tried.append(time.monotonic())
        raise RuntimeError("on purpose")

    watcher = Watcher(place, "another", lambda: "another", fail)
    wait_until(lambda: len(tried) == 5)
    watcher.close()
    pauses = np.diff(tried)
    assert pauses[-1] >= 0.14  # 20 ms, doubled three times, less a little
