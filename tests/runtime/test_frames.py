"""The newest frame, and how many were dropped."""

import sys
import threading
import types

import numpy as np
import pytest

import edgetl
from edgetl.errors import InputError, MissingExtraError
from edgetl.runtime import Frames


def frame(number):
    return np.full((16, 16, 3), number, np.uint8)


class Camera:
    """Delivers frames when told to."""

    def __init__(self, count):
        self.allowed = threading.Semaphore(0)
        self.count = count

    def __iter__(self):
        for number in range(self.count):
            self.allowed.acquire()
            yield frame(number)

    def deliver(self, count):
        for _ in range(count):
            self.allowed.release()


def wait_until(condition):
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("never came true")


def test_the_newest_is_given_and_the_others_are_counted():
    camera = Camera(6)
    with Frames(camera) as frames:
        shown = iter(frames)
        camera.deliver(1)
        assert next(shown)[0, 0, 0] == 0
        camera.deliver(4)  # 1 to 4 come while the app is busy
        wait_until(lambda: frames.dropped == 3)
        assert next(shown)[0, 0, 0] == 4
        camera.deliver(1)
        assert next(shown)[0, 0, 0] == 5
        assert next(shown, None) is None
    assert frames.dropped == 3


def test_the_last_frame_is_given_before_the_end():
    assert [f[0, 0, 0] for f in Frames([frame(7)])] == [7]
    assert list(Frames([])) == []


def test_what_the_source_raises_reaches_the_loop():
    def broken():
        yield frame(1)
        raise OSError("cable")

    frames = Frames(broken())
    wait_until(lambda: frames._over)
    shown = iter(frames)
    assert next(shown)[0, 0, 0] == 1
    with pytest.raises(OSError, match="cable"):
        next(shown)


def test_closing_ends_a_loop_that_waits():
    camera = Camera(2)
    frames = Frames(camera)
    ended = threading.Event()

    def loop():
        for _ in frames:
            pass
        ended.set()

    threading.Thread(target=loop, daemon=True).start()
    camera.deliver(1)
    threading.Timer(0.05, camera.deliver, (1,)).start()
    frames.close()
    assert ended.wait(10)


def test_opencv_gives_its_frames_as_rgb(monkeypatch, tiny_bundle):
    released = []

    class VideoCapture:
        def __init__(self, source):
            self.source, self.left = source, 1

        def isOpened(self):
            return self.source == 0

        def read(self):
            self.left -= 1
            return self.left >= 0, np.full((16, 16, 3), (0, 0, 255), np.uint8)

        def release(self):
            released.append(self.source)

    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=VideoCapture))
    with edgetl.load(tiny_bundle) as classify, Frames(0) as frames:
        assert [classify(f).label for f in frames] == ["red"]
    assert released == [0]
    with pytest.raises(InputError, match="rtsp://none: OpenCV cannot open this camera or video"):
        Frames("rtsp://none")


def test_a_camera_that_hangs_is_released_when_it_answers(monkeypatch):
    monkeypatch.setattr("edgetl.runtime.frames._PATIENCE_S", 0.05)
    answers, released = threading.Event(), threading.Event()

    class VideoCapture:
        def __init__(self, source):
            pass

        def isOpened(self):
            return True

        def read(self):
            answers.wait(20)
            return True, frame(1)

        def release(self):
            released.set()

    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=VideoCapture))
    frames = Frames(0)
    frames.close()
    assert not released.is_set()  # it is being read from
    answers.set()
    assert released.wait(20)


def test_dropped_frames_are_counted_where_the_classifier_counts(tiny_bundle):
    camera = Camera(5)
    with edgetl.load(tiny_bundle) as classify, Frames(camera, meters=classify.meters) as frames:
        camera.deliver(5)
        wait_until(lambda: frames._over)
        assert [f[0, 0, 0] for f in frames] == [4]
        assert classify.metrics()["frames_dropped"] == frames.dropped == 4
        assert "edgetl_frames_dropped_total 4" in classify.prometheus()


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"cv2 is not installed, .* pip install 'edgetl\[camera\]'"):
        Frames(0)
