"""What state an NVIDIA Jetson is in. Standard library only; every path lies under ``root``, which tests replace."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Jetson", "jetson", "l4t_release"]

# L4T release -> JetPack; the longest matching beginning counts. Sources: NVIDIA's JetPack archive, jetson_stats.
_JETPACKS = {
    "35.": "5", "36.3": "6.0", "36.4.0": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5": "6.2.2",
    "38.2": "7.0", "38.4": "7.1", "39.2.0": "7.2", "39.2.1": "7.2.1",
}  # fmt: skip
_TIMEOUT_S = 10


@dataclass(frozen=True)
class Jetson:
    """One board, now.

    Attributes:
        l4t: Its system release, for example ``36.4.3``, or ``unknown``.
        jetpack: That it belongs to, for example ``6.2``; None where this edgetl does not know the release.
        power_mode: In nvpmodel's words, for example ``15W``; None where it does not answer.
        gpu_mhz: Clock of the GPU now, and its largest; None where the system does not tell.
        clocks_locked: Whether the GPU's clock is held at one value, as jetson_clocks does.
        dla_cores: Deep-learning accelerators.
        system_tensorrt: Where JetPack put TensorRT's Python bindings, or None.
    """

    l4t: str
    jetpack: str | None
    power_mode: str | None
    gpu_mhz: tuple[int, int] | None
    clocks_locked: bool | None
    dla_cores: int
    system_tensorrt: str | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**asdict(self), "gpu_mhz": None if self.gpu_mhz is None else list(self.gpu_mhz)}


def jetson(root: Path = Path("/")) -> Jetson | None:
    """Returns the state of this board, or None where it is no Jetson."""
    l4t = l4t_release(root)
    if l4t is None:
        return None
    clock = _gpu_clock(root)
    bindings = sorted(root.glob("usr/lib/python3*/dist-packages/tensorrt/__init__.py"))
    return Jetson(
        l4t,
        _jetpack(l4t),
        _power_mode(),
        None if clock is None else (clock[1], clock[2]),
        None if clock is None else clock[0] == clock[2],
        len(list(root.glob("dev/nvhost-ctrl-nvdla*"))),
        str(bindings[-1].parent) if bindings else None,
    )


def l4t_release(root: Path = Path("/")) -> str | None:
    """Returns a Jetson's system release, for example ``36.4.3``, ``unknown``, or None elsewhere."""
    try:
        line = (root / "etc/nv_tegra_release").read_text(encoding="utf-8", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        return "unknown" if _is_tegra(root) else None
    found = re.search(r"R(\d+) .*?REVISION: ([\d.]+)", line)
    return f"{found[1]}.{found[2]}" if found else line[:40]


def _is_tegra(root: Path) -> bool:
    """Tells a Jetson by its device tree, which containers see where the release file was not mounted."""
    try:
        return b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes()
    except OSError:
        return False


def _jetpack(l4t: str) -> str | None:
    known = [begin for begin in _JETPACKS if f"{l4t}.".startswith(begin if begin.endswith(".") else f"{begin}.")]
    return _JETPACKS[max(known, key=len)] if known else None


def _power_mode() -> str | None:
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"^NV Power Mode:\s*(?:MODE_)?(\S+)", done.stdout, re.MULTILINE)
    return None if found is None else found[1]


def _gpu_clock(root: Path) -> tuple[int, int, int] | None:
    """Returns the GPU's smallest, present and largest clock, MHz."""
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        if re.search(r"gpu|gv11b|ga10b|gb10b|17000000", folder.name):
            try:
                hertz = [int((folder / f"{name}_freq").read_text()) for name in ("min", "cur", "max")]
            except (OSError, ValueError):
                continue
            low, now, high = (value // 1_000_000 for value in hertz)
            return low, now, high
    return None
