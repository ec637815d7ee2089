"""A bundle as a revision of the user's git repository has it."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetl.errors import InputError

__all__ = ["bundle_at"]

_TIMEOUT_S = 600
_LFS = b"version https://git-lfs"


@contextmanager
def bundle_at(text: str) -> Iterator[tuple[str, Path]]:
    """Gives name and folder of a bundle: a path, or ``GIT_REV:PATH`` as that revision has it.

    As in git, PATH starts at the repository's root, or with ``./`` here.

    Raises:
        InputError: There is no such path, revision, or folder in it.
    """
    if Path(text).exists() or ":" not in text:
        yield text, Path(text)
        return
    revision, _, path = text.partition(":")
    top = Path(_git("rev-parse", "--show-toplevel", what=f"{text}: neither a bundle here nor a git repository around"))
    if path.startswith(("./", "../")):
        path = os.path.relpath(Path.cwd() / path, top)
    commit = _git(
        "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}",
        what=f'{text}: git knows no revision "{revision}"; a shallow clone needs fetch-depth: 0',
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "bundle.tar"
        _git(
            "-C", str(top), "archive", "--format=tar", f"--output={archive}", commit, "--", path,
            what=f"{text}: {revision} has no {path}",
        )  # fmt: skip
        _unpack(archive, Path(folder) / "tree")
        found = Path(folder) / "tree" / path
        _check_lfs(found, text)
        yield text, found


def _git(*arguments: str, what: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError:
        raise InputError(f"{what} (git is not installed)") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{what} (git took more than {_TIMEOUT_S} s)") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1].removeprefix("fatal: ")
        raise InputError(f"{what} ({last[:160]})" if last else what)
    return done.stdout.strip()


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if not (member.isfile() or member.isdir()):
                raise InputError(f"{member.name}: is a link or a device; a bundle holds plain files")
            if member.name.startswith("/") or ".." in Path(member.name).parts:
                raise InputError(f"{member.name}: leaves the bundle")
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Pythons before 3.11.4 have none
        tar.extractall(target, **safe)  # type: ignore[arg-type]


def _check_lfs(folder: Path, text: str) -> None:
    for path in folder.glob("*.onnx"):
        with path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise InputError(f"{text}: holds pointers of Git LFS: git lfs install, and git lfs fetch --all")
