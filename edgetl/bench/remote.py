"""Benchmarks on boards that are reached by SSH: everything they need is brought, and nothing is left behind.

Each board gets a folder of its own for as long as the connection lives; a keeper (`edgetl.bench.keeper`) runs the
benchmark there and removes the folder whatever happens. Boards run in parallel, and one that is lost costs its own
result alone.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import logging
import shlex
import socket
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl.bench.boards import Board
from edgetl.bench.result import Result
from edgetl.bench.stage import Contender
from edgetl.bench.wheelhouse import own_wheel, wheels_for
from edgetl.bundle import open_bundle
from edgetl.errors import EdgetlError, EngineError, InputError, require

__all__ = ["Job", "Outcome", "bench_on_boards"]

_CONNECT_S = 20.0
_SILENT_S = 60.0  # a keeper gives a sign of life every five
_KEEPER = Path(__file__).with_name("keeper.py")
_START = "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
_RESULT, _LUGGAGE = "result.json", "luggage.tar"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What every board shall do.

    Attributes:
        contenders: Bundles with their pictures.
        options: Of ``edgetl bench``, beside bundles, data and outputs.
        reference: What ``--against`` names, or None.
        wheelhouse: Folder of wheels that fit the boards; None downloads them here.
    """

    contenders: Sequence[Contender]
    options: Sequence[str]
    reference: Contender | None = None
    wheelhouse: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one board: a result as JSON, or why there is none."""

    board: Board
    result: dict[str, Any] | None = None
    problem: str | None = None


def bench_on_boards(boards: Sequence[Board], job: Job, *, say: Callable[[str, str], None]) -> list[Outcome]:
    """Runs ``edgetl bench`` on every board at once.

    Args:
        boards: Where.
        job: What.
        say: Called with (board's name, line) from several threads.

    Returns:
        An outcome for each board, in their order; a board that fails stops no other.

    Raises:
        MissingExtraError: paramiko is not installed.
    """
    require("paramiko", "remote")
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it writes tracebacks of what is raised anyway

    clients: list[Any] = []

    def one(board: Board) -> Outcome:
        try:
            return Outcome(board, result=_bench_on(board, job, clients, lambda line: say(board.name, line)))
        except EdgetlError as error:
            return Outcome(board, problem=_printable(str(error)))

    with ThreadPoolExecutor(len(boards)) as pool:
        try:
            return list(pool.map(one, boards))
        except BaseException:  # Ctrl-C: every keeper ends when its connection does
            for client in clients:
                client.close()
            raise


def _printable(text: str) -> str:
    """A board's words go to a terminal: nothing in them may command it."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _bench_on(board: Board, job: Job, clients: list[Any], say: Say) -> dict[str, Any]:
    with _connected(board) as client, _kept(client, board) as session:
        clients.append(client)
        facts = session.facts
        say(f"Python {'.'.join(map(str, facts['python']))} on {facts['machine']}, in {facts['folder']}")
        luggage = _pack(job, facts)
        size = sum(luggage.sizes)
        if size * 4 > facts["free_bytes"]:  # packed, unpacked twice, and what is built there
            raise EngineError(
                f"{facts['folder']}: {size * 4 / 1e6:.0f} MB are needed, {facts['free_bytes'] / 1e6:.0f} MB are free: "
                "name another place as folder: in boards.yaml"
            )
        say(f"copying {size / 1e6:.0f} MB")
        session.upload(luggage.files)
        session.run(luggage.command, luggage.wheels, say)
        return luggage.at_home(session.fetch(_RESULT), board.name, facts["folder"])


@dataclass
class _Luggage:
    """What goes to a board, and how its result is read at home."""

    files: list[tuple[bytes | Path, str]] = field(default_factory=list)
    wheels: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> Iterator[int]:
        """Bytes of each file."""
        for data, _ in self.files:
            yield len(data) if isinstance(data, bytes) else data.stat().st_size

    def at_home(self, data: bytes, board: str, folder: str) -> dict[str, Any]:
        """Returns the result with the names that things have here: of bundles, of data and of pictures."""

        def named(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: named(item) for key, item in value.items()}
            if isinstance(value, list):
                return [named(item) for item in value] if value and not isinstance(value[0], int | float) else value
            return self._name(value, folder) if isinstance(value, str) else value

        try:
            result = named(json.loads(data))
            Result.from_dict(result)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise EngineError("the board's result is damaged; run again") from None
        return {**result, "device": board}

    def _name(self, text: str, folder: str) -> str:
        inside = text.removeprefix(f"{folder}/")
        first, space, rest = inside.partition(" ")  # "BUNDLE variant" of a gate's check
        if inside in self.names:
            return self.names[inside]
        return (
            f"{self.names[first]}{space}{rest}"
            if first.endswith(".edgetl") and first in self.names
            else _printable(text)
        )


def _pack(job: Job, facts: Mapping[str, Any]) -> _Luggage:
    """Lays out the board's folder: wheels, bundles, and a table of pictures for each data set."""
    luggage = _Luggage()
    with tempfile.TemporaryDirectory() as folder:
        own = own_wheel(Path(folder))
        luggage.files.append((own.read_bytes(), f"wheels/{own.name}"))
    luggage.files += [(wheel, f"wheels/{wheel.name}") for wheel in wheels_for(facts, job.wheelhouse)]
    luggage.wheels = [name for _, name in luggage.files][::-1]  # ours last, whatever else brings an edgetl
    tables: dict[tuple[str, str], str] = {}
    arguments = []
    everyone = [*job.contenders, *([job.reference] if job.reference else [])]
    for number, contender in enumerate(everyone):
        there = f"bundle{number}.edgetl"
        bundle = open_bundle(contender.path)
        for name in ("manifest.json", *bundle.manifest["files"]):
            luggage.files.append((bundle.root / name, f"{there}/{name}"))
        luggage.names[there] = contender.name
        table = _table(luggage, contender, tables)
        arguments.append(there if table is None else f"{there}={table}")
    data = [] if not tables else ["--split", "all", "--allow-leakage"]
    against = []
    if job.reference is not None:  # its pictures are those of --data, the bundle's own go with it
        reference = arguments.pop()
        there, _, table = reference.partition("=")
        against = ["--against", there, *(["--data", table] if table else [])]
    luggage.command = [
        "-m", "edgetl.cli.main", "bench", *arguments, *data, *against, *job.options, "--quiet", "--json", _RESULT,
    ]  # fmt: skip
    return luggage


def _table(luggage: _Luggage, contender: Contender, tables: dict[tuple[str, str], str]) -> str | None:
    """Adds the pictures of a data set once, as a table ``path,label``."""
    if contender.dataset is None:
        return None
    key = (contender.dataset.digest, contender.split)
    if key not in tables:
        folder = f"data{len(tables)}"
        tables[key] = f"{folder}.csv"
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(("path", "label"))
        for number, item in enumerate(contender.items):
            name = f"{folder}/{number:06}{item.path.suffix.lower()}"
            luggage.files.append((item.path, name))
            luggage.names[name] = str(item.path)
            writer.writerow((name, contender.dataset.classes[item.label]))
        luggage.files.append((text.getvalue().encode(), tables[key]))
        luggage.names[tables[key]] = contender.dataset.root
    return tables[key]


@contextmanager
def _connected(board: Board) -> Iterator[Any]:
    """Gives a paramiko client whose host key was checked."""
    import paramiko
    from paramiko.ssh_exception import NoValidConnectionsError

    client = paramiko.SSHClient()
    client.load_system_host_keys()
    if Path("/etc/ssh/ssh_known_hosts").is_file():
        client.load_system_host_keys("/etc/ssh/ssh_known_hosts")
    client.set_missing_host_key_policy(_Strict())
    known = _ssh_config(board)
    host = known.get("hostname", board.host)
    port = board.port or int(known.get("port", 22))
    if "proxyjump" in known:
        raise InputError(f"{board.name}: ProxyJump in ~/.ssh/config: write it as ProxyCommand ssh -W %h:%p JUMPHOST")
    try:
        client.connect(
            host,
            port,
            username=board.user or known.get("user"),
            key_filename=_identity(board) or known.get("identityfile"),
            sock=paramiko.ProxyCommand(known["proxycommand"]) if "proxycommand" in known else None,
            timeout=_CONNECT_S,
            banner_timeout=_CONNECT_S,
            auth_timeout=_CONNECT_S,
        )
        client.get_transport().set_keepalive(15)
        yield client
    except paramiko.BadHostKeyException as error:
        raise EngineError(
            f"{host}: its host key CHANGED (known {_fingerprint(error.expected_key)}, now {_fingerprint(error.key)}): "
            f"somebody may listen in; if the board was set up anew: ssh-keygen -R {_known_name(host, port)}"
        ) from None
    except paramiko.AuthenticationException as error:
        raise EngineError(
            f"{host}: lets nobody in with these keys ({error}): ssh-copy-id, or identity: in boards.yaml"
        ) from None
    except (
        paramiko.SSHException,
        NoValidConnectionsError,
        ConnectionError,
        TimeoutError,
        socket.gaierror,
        EOFError,
    ) as error:
        raise EngineError(f"{host}: connection failed or was lost ({_words(error)})") from None
    except OSError as error:  # a full disk there, a file that is gone here
        raise EngineError(f"{host}: copying failed ({_words(error)})") from None
    finally:
        client.close()


def _identity(board: Board) -> str | None:
    return None if board.identity is None else str(Path(board.identity).expanduser())


class _Strict:
    """Refuses a board whose key is not known, and says how it becomes known."""

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Is called by paramiko."""
        raise EngineError(
            f"{hostname}: its host key {_fingerprint(key)} is not known: connect once by ssh and compare it, which "
            "writes it to ~/.ssh/known_hosts"
        )


def _fingerprint(key: Any) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _known_name(host: str, port: int) -> str:
    return host if port == 22 else f"'[{host}]:{port}'"


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _ssh_config(board: Board) -> dict[str, Any]:
    """Returns what ~/.ssh/config says of a host: a name there may stand for another machine."""
    import paramiko

    path = Path("~/.ssh/config").expanduser()
    if not path.is_file():
        return {}
    try:
        return dict(paramiko.SSHConfig.from_path(str(path)).lookup(board.host))
    except (paramiko.SSHException, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({_words(error)})") from None


@contextmanager
def _kept(client: Any, board: Board) -> Iterator[_Session]:
    """Gives a folder on the board that lives as long as this block."""
    channel = client.get_transport().open_session()
    channel.settimeout(_SILENT_S)
    channel.exec_command(f"{shlex.quote(board.python)} -c {shlex.quote(_START)}")
    source = f"{_KEEPER.read_text(encoding='utf-8')}\nmain({board.folder!r})\n".encode()
    channel.sendall(f"{len(source)}\n".encode() + source)
    session = _Session(client, channel)
    try:
        session.begin(board)
        yield session
    finally:
        channel.shutdown_write()  # the keeper's end: it removes the folder
        deadline = time.monotonic() + _CONNECT_S
        while not channel.exit_status_ready() and client.get_transport().is_active() and time.monotonic() < deadline:
            time.sleep(0.02)


class _Session:
    """One keeper's channel."""

    def __init__(self, client: Any, channel: Any) -> None:
        self._client = client
        self._channel = channel
        self._lines = channel.makefile("r", -1)
        self.facts: dict[str, Any] = {}

    def begin(self, board: Board) -> None:
        """Waits for the keeper's first words."""
        try:
            self.facts = self._next()
            missing = {"folder", "python", "machine", "libc", "free_bytes", "has"} - set(self.facts)
            if missing:
                raise EngineError(f"{board.python} on the board says nothing of {', '.join(sorted(missing))}")
        except EngineError:
            said = self._channel.makefile_stderr("r", -1).read(4000)
            last = (said.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
            if not last:
                raise
            raise EngineError(
                f"{board.python} does not start on the board ({last[:200]}): python: in boards.yaml"
            ) from None

    def _next(self) -> dict[str, Any]:
        """Returns the keeper's next line that says something."""
        while True:
            try:
                line = self._lines.readline()
            except TimeoutError:
                raise EngineError(f"the board has not answered for {_SILENT_S:.0f} s") from None
            if not line:
                raise EngineError("the connection was lost, or the board's edgetl was killed")
            try:
                found: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # a greeting of the board's shell
            if isinstance(found, dict) and "alive" not in found:
                return found

    def upload(self, files: Sequence[tuple[bytes | Path, str]]) -> None:
        """Copies files into the folder, as one archive."""
        with tempfile.TemporaryFile() as packed, self._client.open_sftp() as sftp:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                for data, name in files:
                    content = data if isinstance(data, bytes) else data.read_bytes()
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            packed.seek(0)
            sftp.get_channel().settimeout(_SILENT_S)
            sftp.putfo(packed, f"{self.facts['folder']}/{_LUGGAGE}")

    def run(self, command: Sequence[str], wheels: Sequence[str], say: Say) -> None:
        """Runs a command of edgetl there.

        Raises:
            EngineError: It failed; a gate that fails (exit code 1) is a result.
        """
        job = {"arguments": list(command), "wheels": list(wheels), "luggage": _LUGGAGE}
        self._channel.sendall((json.dumps(job) + "\n").encode())
        last = "it said nothing"
        while True:
            found = self._next()
            if "exit" in found:
                break
            line = _printable(str(found.get("line", "")))
            last = line or last
            if line:
                say(line)
        if found["exit"] not in (0, 1):
            raise EngineError(f"edgetl bench failed there: {last.removeprefix('edgetl: ')[:300]}")

    def fetch(self, name: str) -> bytes:
        """Returns a file of the folder."""
        data = io.BytesIO()
        with self._client.open_sftp() as sftp:
            sftp.get_channel().settimeout(_SILENT_S)
            try:
                sftp.getfo(f"{self.facts['folder']}/{name}", data)
            except FileNotFoundError:
                raise EngineError("edgetl bench wrote no result there") from None
        return data.getvalue()
