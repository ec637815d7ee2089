"""Facts about this machine that a measurement depends on. Standard library only.

Every app that loads a bundle imports it, and waits for what it imports; what tells facts is imported where they are.
"""

from __future__ import annotations

import os
import platform
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = [
    "arch",
    "available_bytes",
    "cpu_flags",
    "cpu_name",
    "facts",
    "gpu_names",
    "has_int8_dot",
    "has_nvidia_device",
    "usable_cores",
    "versions",
]

_PACKAGES = (
    "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch", "torchvision",
    "lightning", "timm", "onnx",
)  # fmt: skip


def arch() -> str:
    """Returns the form of INT8 graph this processor wants: ``x86`` or ``arm``."""
    return "arm" if platform.machine().lower() in ("aarch64", "arm64", "armv7l") else "x86"


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\x00\n ").splitlines()[0]
    except (OSError, IndexError):
        return None


@lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def cpu_name() -> str:
    """Returns the processor's name as the system tells it."""
    info = _cpuinfo()
    return info.get("model name") or info.get("Hardware") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Returns the processor's feature flags (``avx512_vnni``, ``asimddp``, ...), empty where unknown."""
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def has_int8_dot() -> bool:
    """Tells whether this processor multiplies int8 without saturating and fast (VNNI; SDOT or i8mm on Arm)."""
    return bool(cpu_flags() & {"avx512_vnni", "avx_vnni", "asimddp", "i8mm"})


def has_nvidia_device() -> bool:
    """Tells whether the system shows a GPU of NVIDIA: the driver's device files, a Jetson's, or WSL's."""
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg"))


@lru_cache(maxsize=1)
def gpu_names() -> tuple[str, ...]:
    """Returns the names of NVIDIA GPUs that the driver's own tool lists, or none."""
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        done = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip()) if done.returncode == 0 else ()


def versions() -> dict[str, str]:
    """Returns the installed versions of the packages that change results or timings."""
    installed = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **{name: v for name, v in installed.items() if v is not None}}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def available_bytes() -> int | None:
    """Returns the memory that can be had without swapping, None where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return None if found is None else int(found[1]) << 10


def usable_cores() -> int:
    """Returns how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """Returns a JSON object that describes this machine and its state right now.

    Keys: ``cpu, cores, arch, int8_dot, memory_bytes, available_bytes, governor, load_1m, gpus, board, system,
    versions``; ``null`` where this machine does not tell.
    """
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "arch": arch(),
        "int8_dot": has_int8_dot(),
        "memory_bytes": _memory_bytes(),
        "available_bytes": available_bytes(),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_1m": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpus": list(gpu_names()),
        "board": _first_line("/proc/device-tree/model"),
        "system": platform.platform(),
        "versions": versions(),
    }
