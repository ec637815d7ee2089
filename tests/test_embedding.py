"""Every program of docs/embedding.md runs as it stands."""

import configparser
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import encoded, write_tiny_bundle

from edgetl.cli.main import run
from edgetl.errors import Overloaded

TEXT = (Path(__file__).parents[1] / "docs" / "embedding.md").read_text()
RED = Image.new("RGB", (40, 30), (255, 0, 0))


def written(name, folder):
    """The program whose first line names it, as a file."""
    [body] = [b for b in re.findall(r"```(?:python|ini)\n(.*?)```", TEXT, re.DOTALL) if b.startswith(f"# {name}")]
    path = folder / name.rsplit("/", maxsplit=1)[-1]
    path.write_text(body)
    return path


def test_one_picture(tiny_bundle, tmp_path):
    RED.save(tmp_path / "bolt.jpg")
    command = [sys.executable, written("one_picture.py", tmp_path), tiny_bundle, tmp_path / "bolt.jpg"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("red 99%\n", "")


def test_learning(tmp_path):
    colors = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
    exemplars = {name: np.array([color] * 3, np.float32) + np.eye(3) for name, color in colors.items()}
    root = write_tiny_bundle(tmp_path / "tiny.edgetl", exemplars=exemplars)
    Image.new("RGB", (40, 30), (250, 250, 0)).save(tmp_path / "bolt.jpg")
    program = written("learn.py", tmp_path)
    for count in (1, 2):  # the second time it goes on from what was saved
        done = subprocess.run(
            [sys.executable, program, root, "yellow", tmp_path / "bolt.jpg"], capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == (f"{tmp_path / 'tiny.overlay.json'}: {{'yellow': {count}}}\n", "")
    program = written("one_picture.py", tmp_path)
    program.write_text(program.read_text().replace("(sys.argv[1])", "(sys.argv[1], overlay=True)"))
    done = subprocess.run([sys.executable, program, root, tmp_path / "bolt.jpg"], capture_output=True, text=True)
    assert done.stdout.startswith("yellow ")


def test_camera_loop(tiny_bundle, tmp_path, monkeypatch, capsys):
    frames = [np.full((30, 40, 3), (0, 0, 255), np.uint8)]  # OpenCV's order
    camera = types.SimpleNamespace(
        isOpened=lambda: True, read=lambda: (bool(frames), frames.pop() if frames else None), release=lambda: None
    )
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=lambda source: camera))
    monkeypatch.setattr(sys, "argv", ["camera_loop.py", str(tiny_bundle), "0"])
    program = written("camera_loop.py", tmp_path)
    exec(compile(program.read_text(), str(program), "exec"), {})
    assert capsys.readouterr().out == "red 0.99 0 dropped\n"


@pytest.fixture
def client(tiny_bundle, tmp_path, monkeypatch):
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    from fastapi.testclient import TestClient

    bundle = tmp_path / "parts.edgetl"
    shutil.copytree(tiny_bundle, bundle)
    monkeypatch.setenv("BUNDLE", str(bundle))
    spec = importlib.util.spec_from_file_location("service", written("service.py", tmp_path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with TestClient(module.app) as opened:
        yield opened


def test_service(client):
    answer = client.post("/classify", content=encoded(RED, "JPEG"))
    assert (answer.status_code, answer.json()["label"]) == (200, "red")
    refused = client.post("/classify", content=b"no picture")
    assert (refused.status_code, "is not a picture" in refused.json()["detail"]) == (422, True)
    told = client.get("/metrics").text
    assert 'edgetl_model_info{model="parts.edgetl"' in told
    assert "edgetl_pictures_total 1\n" in told


def test_service_under_load_and_beyond_it(client, monkeypatch):
    with ThreadPoolExecutor(12) as pool:
        codes = pool.map(lambda _: client.post("/classify", content=encoded(RED, "PNG")).status_code, range(48))
        assert list(codes) == [200] * 48

    def full(picture, deadline_ms):
        raise Overloaded("64 requests wait already")

    monkeypatch.setattr(client.app.state.classify._batcher, "submit", full)
    refused = client.post("/classify", content=encoded(RED, "PNG"))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def post(port, body):
    """A connection that has sent all but the last byte of a picture."""
    sent = socket.create_connection(("127.0.0.1", port), timeout=20)
    sent.sendall(b"POST /classify HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:-1])
    return sent


def test_sigterm_ends_the_service_after_what_is_under_way(tiny_bundle, tmp_path):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    written("service.py", tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "service:app", "--host", "127.0.0.1", "--port", str(port)]
    picture = encoded(RED, "PNG")
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "BUNDLE": str(tiny_bundle)}, stderr=subprocess.PIPE, text=True
    ) as service:
        try:
            told = ""
            while "Uvicorn running" not in told:
                told = service.stderr.readline()
                assert told, "the service did not start"
            connections = [post(port, picture) for _ in range(5)]
            time.sleep(0.3)
            service.send_signal(signal.SIGTERM)
            while "Waiting for connections to close" not in told:
                told = service.stderr.readline()
                assert told, "the service did not wait"
            for connection in connections:
                connection.sendall(picture[-1:])
            for connection in connections:
                with connection, connection.makefile("rb") as answer:
                    told = answer.read()
                assert told.startswith(b"HTTP/1.1 200 OK")
                assert b'"label":"red"' in told
            assert service.wait(20) in (0, -signal.SIGTERM)
            assert "Application shutdown complete" in service.stderr.read()
        finally:
            service.kill()


def test_the_unit_starts_the_service_of_this_page(tmp_path):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(written("/etc/systemd/system/classify.service", tmp_path).read_text())
    program, module, *_ = unit["Service"]["ExecStart"].split()
    assert program.endswith("/uvicorn")
    assert f"# {module.split(':')[0]}.py;" in TEXT
    tool = shutil.which("systemd-analyze")
    if tool is not None:  # it complains that uvicorn is not installed there, and of nothing else
        done = subprocess.run([tool, "verify", tmp_path / "classify.service"], capture_output=True, text=True)
        assert [line for line in done.stderr.splitlines() if "classify.service" in line and "uvicorn" not in line] == []


def test_the_commands(tiny_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(tmp_path / "parts.edgetl")
    lines = [line.split("#")[0].split()[1:] for line in re.findall(r"^edgetl bundle .*", TEXT, re.MULTILINE)]
    assert [line[1] for line in lines] == ["keygen", "sign", "verify"]
    for line in lines:
        assert run(line) == 0, capsys.readouterr().err
