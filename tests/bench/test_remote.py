"""Boards by SSH, against a real OpenSSH server on loopback with keys and ports of its own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from bench.test_result import RESULT

from edgetl.bench.boards import Board, boards_named
from edgetl.bench.connection import START, keeper_source
from edgetl.bench.luggage import Luggage
from edgetl.bench.wheelhouse import own_wheel, requirements, wheels_for
from edgetl.cli.main import run
from edgetl.errors import EngineError, InputError

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
USER = "root" if os.getuid() == 0 else os.environ.get("USER", "root")
needs_sshd = pytest.mark.skipif(
    SSHD is None, reason="OpenSSH's server is not installed: apt-get install openssh-server"
)
PYTHON = next(p for p in ("/usr/bin/python3", sys.executable) if Path(p).exists())


class Server:
    """One OpenSSH server, its host key and its port."""

    def __init__(self, folder, user_key):
        self.folder = folder
        folder.mkdir()
        self.new_key()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        (folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {user_key}.pub\n"
            "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n"
            f"SetEnv TMPDIR={self.temporary}\nSubsystem sftp internal-sftp\n"
        )
        self.process = None

    def new_key(self):
        for path in self.folder.glob("host*"):
            path.unlink()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host"], check=True)

    def start(self):
        command = [SSHD, "-D", "-E", str(self.folder / "log"), "-f", str(self.folder / "config")]
        self.process = subprocess.Popen(command)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=10)

    @property
    def known(self):
        return f"[127.0.0.1]:{self.port} {(self.folder / 'host.pub').read_text()}"

    @property
    def url(self):
        return f"ssh://{USER}@127.0.0.1:{self.port}"

    def kill_sessions(self):
        """Cuts every connection, as a board does that loses its power."""
        tree = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        for line in tree.splitlines():
            pid, parent = map(int, line.split())
            if parent == self.process.pid:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssh")
    home = folder / "home" / ".ssh"
    home.mkdir(parents=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "id_ed25519"], check=True)
    made = [Server(folder / name, home / "id_ed25519") for name in ("one", "two")]
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(home.parent))
    patch.delenv("SSH_AUTH_SOCK", raising=False)
    for server in made:
        server.start()
    (home / "known_hosts").write_text("".join(server.known for server in made))
    (folder / "boards.yaml").write_text(
        "boards:\n"
        + "".join(
            f"  {n}:\n    host: {s.url}\n    python: {PYTHON}\n" for n, s in zip(("left", "right"), made, strict=True)
        )
    )
    yield made, folder
    for server in made:
        server.stop()
    patch.undo()


def bench(*arguments):
    return run(["bench", *map(str, arguments)])


@needs_sshd
@pytest.mark.slow
def test_two_boards_at_once_bring_their_results_and_keep_nothing(
    servers, bundle_path, new_digits_folder, tmp_path, capsys
):
    made, folder = servers
    out = tmp_path / "r.json"
    code = bench(
        bundle_path, "--data", new_digits_folder, "--variant", "fp32", "--device", "left", "--device", "right",
        "--boards", folder / "boards.yaml", "--seconds", "0.1", "--processes", "2", "--json", out,
    )  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0, shown.err
    results = json.loads(out.read_text())
    assert [result["device"] for result in results] == ["left", "right"]
    for result in results:
        [entry] = result["results"]
        assert entry["bundle"] == str(bundle_path)
        assert entry["accuracy"]["top1"] > 0.5
        assert len(entry["samples_ns"]) == 2
        assert result["settings"]["data"][0]["source"] == str(new_digits_folder)
        assert "torch" not in result["host"]["versions"]
        assert set(entry["stages_ms"]) == {"decode", "preprocess", "infer", "postprocess"}
    assert results[0]["results"][0]["accuracy"] == results[1]["results"][0]["accuracy"]
    for server in made:
        assert list(server.temporary.iterdir()) == []
    assert "left: copying" in shown.err
    assert "right: one picture at a time" in shown.out


@needs_sshd
@pytest.mark.slow
def test_a_board_that_is_lost_costs_its_own_result_alone(servers, bundle_path, tmp_path, capsys):
    made, folder = servers
    out = tmp_path / "r.json"

    def lose():
        for _ in range(600):
            if any(made[0].temporary.glob("edgetl-*/site/edgetl")):
                break
            time.sleep(0.05)
        time.sleep(1.0)
        made[0].kill_sessions()

    killer = threading.Thread(target=lose)
    killer.start()
    code = bench(
        bundle_path, "--variant", "fp32", "--device", "left", "--device", "right", "--boards", folder / "boards.yaml",
        "--seconds", "3", "--processes", "1", "--json", out,
    )  # fmt: skip
    killer.join()
    err = capsys.readouterr().err
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("edgetl: 1 of 2 devices gave no result: left: ")
    assert "lost" in last
    assert [result["device"] for result in json.loads(out.read_text())] == ["right"]
    for _ in range(100):  # the keeper there notices by itself
        if not list(made[0].temporary.iterdir()):
            break
        time.sleep(0.1)
    assert list(made[0].temporary.iterdir()) == []


@needs_sshd
@pytest.mark.slow
def test_a_gate_runs_on_the_board(servers, bundle_path, new_digits_folder, tmp_path, capsys):
    made, _ = servers
    code = bench(
        bundle_path, "--data", new_digits_folder, "--device", made[0].url, "--against", bundle_path,
        "--max-drop", "0pt", "--min-recall", "7=100%", "--seconds", "0.1", "--processes", "1",
        "--json", tmp_path / "r.json", "--junit", tmp_path / "j.xml",
    )  # fmt: skip
    err = capsys.readouterr().err
    result = json.loads((tmp_path / "r.json").read_text())
    checks = {check["what"]: check for check in result["gate"]["checks"]}
    assert checks["top-1 drop"]["ok"] is True
    assert code == (0 if result["gate"]["ok"] else 1), err
    assert checks["recall of 7"]["model"].startswith(str(bundle_path))
    assert made[0].url in (tmp_path / "j.xml").read_text()


@needs_sshd
def test_a_changed_host_key_and_an_unknown_one_are_refused(servers, tiny_bundle, capsys):
    _, folder = servers
    known = folder / "home" / ".ssh" / "known_hosts"
    before = known.read_text()
    stranger = Server(folder / "stranger", folder / "home" / ".ssh" / "id_ed25519")
    stranger.start()
    try:
        assert bench(tiny_bundle, "--device", stranger.url) == 2
        err = capsys.readouterr().err
        assert "host key SHA256:" in err
        assert "is not known" in err
        known.write_text(before + stranger.known)
        stranger.stop()
        stranger.new_key()
        stranger.start()
        assert bench(tiny_bundle, "--device", stranger.url) == 2
        err = capsys.readouterr().err.strip().splitlines()[-1]
        assert "host key CHANGED" in err
        assert f"ssh-keygen -R '[127.0.0.1]:{stranger.port}'" in err
        assert list(stranger.temporary.iterdir()) == []
    finally:
        known.write_text(before)
        stranger.stop()


@needs_sshd
def test_what_else_goes_wrong_is_one_line(servers, tiny_bundle, tmp_path, capsys):
    made, _ = servers
    for url, said in (
        (f"ssh://nobody-here@127.0.0.1:{made[0].port}", "lets nobody in with these keys"),
        ("ssh://127.0.0.1:1", "connection failed or was lost"),
    ):
        assert bench(tiny_bundle, "--device", url) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]
    (tmp_path / "boards.yaml").write_text(f"boards:\n  b:\n    host: {made[0].url}\n    python: /no/python\n")
    assert bench(tiny_bundle, "--device", "b", "--boards", tmp_path / "boards.yaml") == 2
    assert "/no/python does not start on the board" in capsys.readouterr().err
    empty = tmp_path / "wheels"
    empty.mkdir()
    assert bench(tiny_bundle, "--device", made[0].url, "--wheelhouse", empty) == 2
    assert "holds no wheels" in capsys.readouterr().err
    assert list(made[0].temporary.iterdir()) == []


def test_addresses_and_names():
    url = "ssh://nvidia@10.0.0.5:2222"
    assert boards_named([url, "local"], None) == [Board(url, "10.0.0.5", 2222, "nvidia"), None]
    assert boards_named(["ssh://orin"], None) == [Board("ssh://orin", "orin")]


def test_a_file_of_boards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boards.yaml").write_text(
        "boards:\n  orin: ssh://nvidia@orin\n  nano: {host: 'ssh://nano:22', python: /usr/bin/python3.10}\n"
    )
    orin, nano = boards_named(["orin", "nano"], None)
    assert (orin.name, orin.host, orin.user, orin.python) == ("orin", "orin", "nvidia", "python3")
    assert (nano.port, nano.python) == (22, "/usr/bin/python3.10")


@pytest.mark.parametrize(
    ("device", "text", "message"),
    [
        ("orin", None, "there is no boards.yaml here"),
        ("orin", "boards: {nano: ssh://nano}", "boards.yaml knows nano"),
        ("http://orin", None, r"ssh://user@host\[:port\]"),
        ("ssh://", None, "is no address of a board"),
        ("ssh://a:99999999", None, "is no address"),
        ("ssh://me:secret@orin", None, "leave the password out"),
        ("orin", "boards: [", "is not YAML"),
        ("orin", "orin: 5", 'must hold "boards:"'),
        ("orin", "boards: {orin: {python: x}}", "board orin needs host"),
        ("orin", "boards: {orin: {host: ssh://o, pyhton: x}}", 'has "pyhton"; it may have'),
        ("orin", "boards: {orin: {host: ssh://o, python: 3}}", "python must be text"),
    ],
)
def test_names_that_cannot_be_used(tmp_path, monkeypatch, device, text, message):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "boards.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        boards_named([device], None)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", ["ssh://a", "ssh://me@a:22", "local"])
def test_a_board_stands_once(other):
    first = "local" if other == "local" else "ssh://a"
    with pytest.raises(InputError, match="stands twice"):
        boards_named([first, other], None)
    assert len(boards_named(["ssh://a", "ssh://a:2222"], None)) == 2


def test_names_that_things_have_at_home():
    luggage = Luggage(
        names={"bundle1.edgetl": "old.edgetl", "bundle10.edgetl": "ten.edgetl", "data0/000001.png": "/p/x.png"}
    )
    there = {
        "a": ["bundle10.edgetl fp32", "/tmp/e/data0/000001.png", "bundle1.edgetl"],
        "b": "bundle1.edgetl: odd\x1b[2J",
    }
    plain = RESULT.to_dict()
    found = luggage.at_home(json.dumps({**plain, **there}).encode(), "orin", "/tmp/e")
    assert found["a"] == ["ten.edgetl fp32", "/p/x.png", "old.edgetl"]
    assert found["b"] == "bundle1.edgetl: odd�[2J"
    assert found["device"] == "orin"
    for damaged in (b"{", b"5", b'{"format_version": 2}', b'{"results": 3}'):
        with pytest.raises(EngineError, match="damaged"):
            luggage.at_home(damaged, "orin", "/tmp/e")


def test_a_folder_is_gone_even_if_the_connection_breaks_while_it_is_filled(tmp_path):
    """The keeper alone, as sshd would run it: its standard input ends in the middle of unpacking."""
    for _ in range(4):
        command = [sys.executable, "-c", START]
        keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        keeper.stdin.write(keeper_source(str(tmp_path)))
        keeper.stdin.flush()
        folder = Path(json.loads(keeper.stdout.readline())["folder"])
        with zipfile.ZipFile(folder / "many.whl", "w") as wheel:
            for number in range(3000):
                wheel.writestr(f"package/{number}.py", "x = 1\n")
        with tarfile.open(folder / "luggage.tar", "w"):
            pass
        job = {"luggage": "luggage.tar", "wheels": ["many.whl"], "arguments": ["-c", "import time; time.sleep(60)"]}
        keeper.stdin.write((json.dumps(job) + "\n").encode())
        keeper.stdin.flush()
        while not (folder / "site" / "package").exists():
            time.sleep(0.001)
        keeper.stdin.close()
        keeper.wait(timeout=20)
        keeper.stdout.close()
        assert list(tmp_path.iterdir()) == []


def test_the_wheel_is_one_that_pip_takes(tmp_path):
    wheel = own_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = archive.read(next(name for name in names if name.endswith("RECORD"))).decode()
    assert "edgetl/bench/keeper.py" in names
    assert not [name for name in names if "__pycache__" in name]
    assert {line.split(",")[0] for line in record.splitlines()} == set(names)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        tmp_path / "site",
    ]
    done = subprocess.run([*map(str, command), str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import importlib.metadata as m, edgetl; print(edgetl.__file__, m.version('edgetl'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd="/")
    assert shown.stdout.split() == [str(tmp_path / "site/edgetl/__init__.py"), metadata.version("edgetl")]


def test_what_a_board_lacks_is_sent():
    plain = {re.split("[<>=]", line)[0] for line in requirements([])}
    assert plain == {"numpy", "pillow", "click", "rich", "onnxruntime"}
    jetson = {re.split("[<>=]", line)[0] for line in requirements(["tensorrt", "onnxruntime"])}
    assert jetson == {"numpy", "pillow", "click", "rich", "cuda-bindings"}


def test_boards_that_cannot_run_edgetl():
    board = {"python": [3, 8, 10], "machine": "aarch64", "libc": ["glibc", "2.31"], "has": []}
    with pytest.raises(EngineError, match=r"its Python is 3.8.10, edgetl needs 3.10"):
        wheels_for(board, None)
    with pytest.raises(EngineError, match="its C library is unknown"):
        wheels_for({**board, "python": [3, 12, 1], "libc": ["", ""]}, None)
