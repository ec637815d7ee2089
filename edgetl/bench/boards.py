"""Names of boards: ``ssh://user@host:port``, or what a boards.yaml calls them.

::

    boards:
      orin:
        host: ssh://nvidia@10.0.0.5        # required
        python: /usr/bin/python3.10        # default: python3
        folder: /mnt/ssd/tmp               # where the temporary folder goes; default: the board's own
        identity: ~/.ssh/boards            # default: the agent's keys and ~/.ssh/id_*
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgetl.errors import InputError, require

__all__ = ["LOCAL", "Board", "boards_named"]

LOCAL = "local"


@dataclass(frozen=True)
class Board:
    """A machine that is reached by SSH.

    Attributes:
        name: As the user calls it.
        host: Name or address.
        port: None is what ~/.ssh/config says, or 22.
        user: None is what ~/.ssh/config says, or the local one.
        python: Path or name there.
        folder: Where its temporary folder goes; None is the board's own choice.
        identity: File of the private key; None takes the agent's and ~/.ssh/id_*.
    """

    name: str
    host: str
    port: int | None = None
    user: str | None = None
    python: str = "python3"
    folder: str | None = None
    identity: str | None = None


def boards_named(devices: Sequence[str], file: Path | None) -> list[Board | None]:
    """Returns the boards for what ``--device`` was given; None is this machine.

    Args:
        devices: ``local``, ``ssh://...`` or a name in the file.
        file: A boards.yaml; None is ``boards.yaml`` here, if there is one.

    Raises:
        InputError: A name is unknown or stands twice, or the file cannot be used.
    """
    default = Path("boards.yaml")
    file = file or (default if default.is_file() else None)
    known = {} if file is None else _read(file)
    found: list[Board | None] = []
    for device in devices:
        if device == LOCAL:
            found.append(None)
        elif "://" in device:
            found.append(_from_url(device, device))
        elif device in known:
            found.append(known[device])
        else:
            where = f"{file} knows {', '.join(known) or 'none'}" if file else "there is no boards.yaml here"
            raise InputError(f'--device "{device}": must be local, ssh://user@host[:port] or a board\'s name; {where}')
    places = [None if board is None else (board.host, board.port or 22) for board in found]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise InputError(f"--device {devices[number]}: stands twice; two runs on one board disturb each other")
    return found


def _from_url(name: str, url: str) -> Board:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url}: is no address ({error}): ssh://user@host[:port]") from None
    if parts.scheme != "ssh" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InputError(f"{url}: is no address of a board: ssh://user@host[:port]")
    if parts.password is not None:
        raise InputError(f"ssh://{parts.hostname}: leave the password out; edgetl takes keys alone: ssh-copy-id")
    return Board(name, parts.hostname, port, parts.username)


def _read(file: Path) -> dict[str, Board]:
    yaml = require("yaml", "remote")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: is not YAML ({' '.join(str(error).split())[:120]})") from None
    boards = data.get("boards") if isinstance(data, dict) else None
    if not isinstance(boards, dict):
        raise InputError(f'{file}: must hold "boards:" with a name and a host for each')
    return {str(name): _entry(file, str(name), entry) for name, entry in boards.items()}


def _entry(file: Path, name: str, entry: Any) -> Board:
    if isinstance(entry, str):
        entry = {"host": entry}
    allowed = {field.name for field in fields(Board)} - {"name", "port", "user"}
    if not isinstance(entry, dict) or "host" not in entry:
        raise InputError(f"{file}: board {name} needs host: ssh://user@host[:port]")
    for key, value in entry.items():
        if key not in allowed:
            raise InputError(f'{file}: board {name} has "{key}"; it may have {", ".join(sorted(allowed))}')
        if not isinstance(value, str):
            raise InputError(f"{file}: board {name}: {key} must be text, it is {value!r:.40}")
    rest = {key: value for key, value in entry.items() if key != "host"}
    return replace(_from_url(name, entry["host"]), **rest)
