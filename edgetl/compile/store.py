"""Plans on disk. A plan is native code: what somebody else can write, or what differs from its record, is never run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl.artifacts import EnginePlan, cache_folder, write_bytes, write_json
from edgetl.compile.key import PlanKey
from edgetl.errors import EngineError, InputError

__all__ = ["Found", "PlanStore", "default_cache", "read_record"]

FORMAT_VERSION = 1
_LARGEST_RECORD = 16 << 20


@dataclass(frozen=True)
class Found:
    """What a store has for a key.

    Attributes:
        plan: Its bytes, whose hash was checked; None where nothing fits.
        record: What was written beside it.
        reason: Why there is none; empty where nothing was ever stored.
    """

    plan: bytes | None
    record: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def default_cache() -> Path:
    """Returns the folder of plans that were built on this machine: ``$EDGETL_CACHE``, or in the user's cache.

    Raises:
        EngineError: The user has neither.
    """
    own = os.environ.get("EDGETL_CACHE")
    if own:
        return Path(own)
    try:
        return cache_folder() / "plans"
    except InputError:
        raise EngineError("this user has no home to keep plans in; name a folder by EDGETL_CACHE") from None


class PlanStore:
    """A folder of plans: ``NAME.plan`` files, and for each key one ``NAME.json`` that names its plan and its hash.

    A plan's name holds its own hash, and the record is replaced last: whoever is killed in between leaves the old
    plan valid, or none.

    Args:
        root: The folder.

    Raises:
        EngineError: Others can write to the folder, it belongs to somebody else, or it cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unusable(root, "read", error) from None
        _check_owner(root)

    def find(self, key: PlanKey) -> Found:
        """Returns the plan of exactly this key, or why it cannot be taken."""
        path = self._record_path(key)
        try:
            record = _read_record(path)
        except FileNotFoundError:
            return Found(None)
        except (OSError, ValueError, RecursionError) as error:
            return Found(None, reason=f"{path}: {_told(error)}")
        try:
            if PlanKey.from_dict(record["key"]) != key:
                raise ValueError("its key is another one")
            return Found(self._plan_of(record), record)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return Found(None, reason=f"{path}: {_told(error)}")

    def find_fitting(self, here: PlanKey) -> Found:
        """Returns a carried plan that fits this machine, whatever its settings; else why none does."""
        reasons = []
        for path in sorted(self.root.glob("*.json")):
            try:
                record = _read_record(path)
                misfit = PlanKey.from_dict(record["key"]).misfit(here)
                if misfit is None:
                    return Found(self._plan_of(record), record)
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                misfit = _told(error)
            reasons.append(f"{path.name}: {misfit}")
        return Found(None, reason=f"{self.root}: " + ("; ".join(reasons) or "has no plans"))

    def put(self, key: PlanKey, plan: bytes, record: Mapping[str, Any], *, name: str | None = None) -> EnginePlan:
        """Stores a plan and its record, and returns where it is.

        Args:
            key: Of the plan.
            plan: Its bytes.
            record: JSON, told beside it.
            name: Of its files, for people; by default the key's digest.

        Raises:
            EngineError: The folder belongs to somebody else.
            InputError: The folder cannot be written to.
        """
        self._make()
        sha256 = hashlib.sha256(plan).hexdigest()
        path = self.root / f"{name or key.digest[:24]}.{sha256[:12]}.plan"
        record_path = self.root / f"{name or key.digest[:24]}.json"
        replaced = self._named_in(record_path)
        write_bytes(path, plan)
        write_json(
            record_path,
            {
                "format_version": FORMAT_VERSION,
                "key": key.to_dict(),
                "plan": path.name,
                "sha256": sha256,
                "bytes": len(plan),
                **record,
            },
        )
        if replaced is not None and replaced != path:
            replaced.unlink(missing_ok=True)
        return EnginePlan(path, key.digest, key.graph_sha256)

    def folder(self, name: str) -> Path:
        """Returns a folder beside the plans, as private as they are."""
        self._make()
        folder = self.root / name
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise _unusable(folder, "written", error) from None
        _check_owner(folder)
        return folder

    def recall(self, name: str) -> dict[str, Any] | None:
        """Returns what `remember` kept under a name, or None; what cannot be trusted counts as forgotten."""
        try:
            return _read_record(self.root / f"{name}.note")
        except (OSError, ValueError, RecursionError):
            return None

    def remember(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keeps a JSON object beside the plans."""
        self._make()
        write_json(self.root / f"{name}.note", {"format_version": FORMAT_VERSION, **facts})

    @contextmanager
    def building(self, key: PlanKey) -> Iterator[None]:
        """Lets one process at a time build a key's plan; the others wait, and find it built."""
        self._make()
        try:
            lock = (self.root / f"{key.digest[:24]}.lock").open("w")
        except OSError as error:
            raise _unusable(self.root, "written", error) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(self.root, "written", error) from None
        _check_owner(self.root)

    def _record_path(self, key: PlanKey) -> Path:
        return self.root / f"{key.digest[:24]}.json"

    def _named_in(self, record_path: Path) -> Path | None:
        try:
            return self.root / _plain_name(_read_record(record_path)["plan"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _plan_of(self, record: Mapping[str, Any]) -> bytes:
        path = self.root / _plain_name(record["plan"])
        plan = _read_own(path)
        if hashlib.sha256(plan).hexdigest() != record["sha256"]:
            raise ValueError(f"{path.name} is damaged or was replaced (sha256 differs)")
        return plan


def read_record(path: Path) -> dict[str, Any]:
    """Reads what is known of a plan, by its own path or that of its record; the plan itself is not touched.

    Raises:
        InputError: There is no record, or it is malformed.
    """
    if path.suffix == ".plan":
        path = path.with_name(".".join(path.name.split(".")[:-2]) + ".json")
    try:
        record = _read_record(path)
        PlanKey.from_dict(record["key"])
        for name in ("variant", "bytes", "sha256", "report"):
            record[name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: is no record of a plan ({_told(error)})") from None
    return record


def _unusable(root: Path, how: str, error: OSError) -> EngineError:
    return EngineError(f"{root}: cannot be {how} ({error.strerror}); name another folder (--out, or EDGETL_CACHE)")


def _check_owner(root: Path) -> None:
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise EngineError(f"{root}: is no folder (a link?); plans are native code: name the folder itself")
    if found.st_uid not in (os.geteuid(), 0):
        raise EngineError(f"{root}: belongs to another user, and plans are native code; use a folder of your own")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EngineError(f"{root}: others can write to it, and plans are native code: chmod 700 '{root}'")
    if not os.access(root, os.R_OK | os.X_OK):
        raise EngineError(f"{root}: this user cannot read it; name another folder (--out, or EDGETL_CACHE)")


def _read_own(path: Path) -> bytes:
    """Reads a file that is no link and that only its owner, this user or root, can write to."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path.name} is no plain file")
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError(f"{path.name} could have been written by somebody else")
        return file.read()


def _read_record(path: Path) -> dict[str, Any]:
    data = _read_own(path)
    if len(data) > _LARGEST_RECORD:
        raise ValueError("is too large for a record")
    record = json.loads(data)
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"is no record of format {FORMAT_VERSION}")
    return record


def _plain_name(name: object) -> str:
    if not isinstance(name, str) or name != Path(name).name or not name.endswith(".plan"):
        raise ValueError("names no plan of this folder")
    return name


def _told(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{Path(str(error.filename or '')).name} cannot be read ({error.strerror})"
    if isinstance(error, KeyError):
        return f"lacks {error}"
    return str(error)[:200]
