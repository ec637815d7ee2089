"""A connection to a board whose host key was checked, and the keeper that owns a folder there."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shlex
import socket
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgetl.bench.boards import Board
from edgetl.errors import EngineError, InputError

__all__ = ["START", "Session", "connected", "keeper_source", "kept", "printable"]

START = "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
_CONNECT_S = 20.0
_SILENT_S = 60.0  # a keeper gives a sign of life every five
_KEEPER = Path(__file__).with_name("keeper.py")
_LUGGAGE = "luggage.tar"


def printable(text: str) -> str:
    """A board's words go to a terminal: nothing in them may command it."""
    return "".join(char if char.isprintable() else "�" for char in text)


@contextmanager
def connected(board: Board) -> Iterator[Any]:
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


def keeper_source(folder: str | None) -> bytes:
    """Returns what `START` reads from standard input: the keeper, its length on a line before it."""
    source = f"{_KEEPER.read_text(encoding='utf-8')}\nmain({folder!r})\n".encode()
    return f"{len(source)}\n".encode() + source


@contextmanager
def kept(client: Any, board: Board) -> Iterator[Session]:
    """Gives a folder on the board that lives as long as this block."""
    channel = client.get_transport().open_session()
    channel.settimeout(_SILENT_S)
    channel.exec_command(f"{shlex.quote(board.python)} -c {shlex.quote(START)}")
    channel.sendall(keeper_source(board.folder))
    session = Session(client, channel)
    try:
        session.begin(board)
        yield session
    finally:
        channel.shutdown_write()  # the keeper's end: it removes the folder
        deadline = time.monotonic() + _CONNECT_S
        while not channel.exit_status_ready() and client.get_transport().is_active() and time.monotonic() < deadline:
            time.sleep(0.02)


class Session:
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
            if last.endswith("in boards.yaml"):  # the keeper's own words
                raise EngineError(printable(last)) from None
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

    def run(self, command: Sequence[str], wheels: Sequence[str], say: Callable[[str], None]) -> None:
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
            line = printable(str(found.get("line", "")))
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
