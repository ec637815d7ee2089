"""A process that forks: the child is told to load its own, never hangs, and hears warnings again."""

from __future__ import annotations

import os
import threading
import traceback
import warnings
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from PIL import Image
from tiny import encoded

import edgetl
from edgetl import quiet
from edgetl.errors import EngineError

RED = np.full((16, 16, 3), (255, 0, 0), np.uint8)


def in_child(work):
    """Runs something in a forked process that has 20 seconds, and returns what it returned."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            os.close(read)
            threading.Timer(20, os._exit, (9,)).start()
            os.write(write, str(work()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return told


@contextmanager
def held(*locks):
    """Lets another thread hold locks, as one that is at work when the process forks."""
    taken, done = threading.Event(), threading.Event()

    def hold():
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            taken.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(20)
    try:
        yield
    finally:
        done.set()
        thread.join(20)


CALLS = {
    "call": lambda classify: classify(RED),
    "batch": lambda classify: classify.batch([RED]),
    "submit": lambda classify: classify.submit(RED),
    "reload": lambda classify: classify.reload(),
    "learn": lambda classify: classify.learn("white", [RED]),
    "forget": lambda classify: classify.forget("white"),
    "save": lambda classify: classify.save(),
    "metrics": lambda classify: classify.metrics(),
    "prometheus": lambda classify: classify.prometheus(),
}


def test_a_forked_process_never_waits_for_whoever_held_a_lock(tiny_bundle):
    with edgetl.load(tiny_bundle) as classify:
        classify.submit(RED).result(20)

        def tell():
            told = []
            for name, call in CALLS.items():
                with pytest.raises(EngineError, match=r"forked after edgetl\.load; call edgetl\.load in each process"):
                    call(classify)
                told.append(name)
            classify.close()
            return " ".join(told)

        model = classify._current
        with held(model._lock, model._changing, classify._starting, classify.meters._lock, classify._batcher._changed):
            assert in_child(tell) == " ".join(CALLS)
        assert classify(RED).label == "red"


def test_a_forked_process_may_load_its_own_while_others_decoded(tiny_bundle):
    def load():
        with edgetl.load(tiny_bundle, threads=1) as classify:
            return classify(picture).label

    picture = encoded(Image.fromarray(RED))
    with held(quiet.without_warnings(), quiet._quiet_lock):
        assert in_child(load) == "red"


def test_a_forked_process_hears_warnings_again():
    def heard():
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("told", UserWarning, stacklevel=1)
        return len(caught)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with held(quiet.without_warnings()):
            assert heard() == 0
            assert in_child(heard) == "1"
        assert heard() == 1


def test_a_block_that_was_entered_before_the_fork_may_be_left_after_it():
    def leave():
        block.__exit__(None, None, None)
        with quiet.without_warnings():
            return quiet._quiet_count

    block = quiet.without_warnings()
    block.__enter__()
    try:
        assert in_child(leave) == "1"
    finally:
        block.__exit__(None, None, None)
    assert quiet._quiet_count == 0
