"""What a board needs to run edgetl and may not be able to download: edgetl's own wheel, and those of its base needs."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import edgetl
from edgetl.artifacts import cache_folder
from edgetl.errors import EngineError, InputError

__all__ = ["own_wheel", "requirements", "wheels_for"]

_PYTHON = (3, 10)
_TIMEOUT_S = 900
_ONE_AT_A_TIME = threading.Lock()


def own_wheel(folder: Path) -> Path:
    """Writes edgetl as it is installed here as a wheel, and returns its path."""
    name = f"edgetl-{edgetl.__version__}"
    package = Path(edgetl.__file__).parent
    files = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"{name}.dist-info"
    files[f"{info}/METADATA"] = (metadata.distribution("edgetl").read_text("METADATA") or "").encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: edgetl\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nedgetl = edgetl.cli.main:main\n"
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, data in files.items():
            archive.writestr(inside, data)
    return path


def _record(files: Mapping[str, bytes], own: str) -> bytes:
    def digest(data: bytes) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

    lines = [f"{name},sha256={digest(data)},{len(data)}" for name, data in files.items()]
    return "\n".join([*lines, f"{own},,", ""]).encode()


def requirements(has: Sequence[str]) -> list[str]:
    """Returns what a board's Python must have beside edgetl.

    Args:
        has: Modules that it has: an onnxruntime of its own is left alone (it may know the GPU), TensorRT wants CUDA's
            bindings.
    """
    extras = [] if "onnxruntime" in has else ["cpu"]
    if {"tensorrt", "tensorrt_rtx"} & set(has) and "cuda" not in has:
        extras.append("jetson")
    found = []
    for line in metadata.requires("edgetl") or []:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.fullmatch(r"""extra == ['"]([\w-]+)['"]""", marker)
        if not marker or (extra and extra[1] in extras):
            found.append(requirement)
    return found


def wheels_for(board: Mapping[str, Any], wheelhouse: Path | None) -> list[Path]:
    """Returns the wheels for a board, from a folder of the user's or downloaded once for boards of its kind.

    Args:
        board: ``python``, ``machine``, ``libc`` and ``has``, as the board tells them.
        wheelhouse: Folder of wheels that fit the board; None downloads them.

    Raises:
        EngineError: This board cannot run edgetl, or the wheels cannot be had.
        InputError: The folder has no wheels.
    """
    python = tuple(board["python"])
    if python < _PYTHON:
        raise EngineError(
            f"its Python is {'.'.join(map(str, python))}, edgetl needs 3.10 or newer: name another one as python: in "
            "boards.yaml"
        )
    if wheelhouse is not None:
        found = sorted(path for path in wheelhouse.glob("*.whl") if not path.name.startswith("edgetl-"))
        if not found:
            raise InputError(f"{wheelhouse}: holds no wheels (*.whl)")
        return found
    with _ONE_AT_A_TIME:
        return _downloaded(board)


def _downloaded(board: Mapping[str, Any]) -> list[Path]:
    libc, version = board["libc"]
    if libc != "glibc":
        raise EngineError(
            f"its C library is {libc or 'unknown'}, wheels are for glibc: collect some, give --wheelhouse"
        )
    wanted = requirements(board["has"])
    python = ".".join(map(str, board["python"][:2]))
    kind = f"cp{python.replace('.', '')}-{board['machine']}-glibc{version}"
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    folder = cache_folder() / "wheels" / f"{kind}-{digest}"
    if folder.is_dir():
        return sorted(folder.glob("*.whl"))
    newest = int(version.split(".")[1])
    platforms = [f"--platform=manylinux_2_{minor}_{board['machine']}" for minor in range(5, newest + 1)]
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", python, *platforms,
        f"--platform=manylinux2014_{board['machine']}", "--dest", str(partial), *wanted,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines() or [""]
            raise EngineError(
                f"wheels for {kind} cannot be downloaded here ({errors[-1][:200]}): collect them elsewhere by pip "
                "download, and give --wheelhouse FOLDER"
            )
        with suppress(OSError):  # somebody else was faster
            partial.replace(folder)
    except subprocess.TimeoutExpired:
        raise EngineError(f"downloading wheels for {kind} took more than {_TIMEOUT_S} s; give --wheelhouse") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(folder.glob("*.whl"))
