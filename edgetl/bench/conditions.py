"""Whether a machine was fit to be measured: clocks, heat, power, and who else used its cores.

Sources: /proc/stat (user_hz ticks, steal), the thermal_throttle counters of x86, the hwmon over-current counters and
cooling devices of a Jetson, NVML's violation counters.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgetl import host
from edgetl.bench.energy import nvml_device
from edgetl.errors import EngineError
from edgetl.jetson import jetson, l4t_release

__all__ = ["Conditions", "State", "fingerprint", "instabilities", "judge", "snapshot"]

_STOLEN = 0.05  # of the time, by a hypervisor
_STARVED = 0.05  # of the time that one thread should have had
_BUSY_CORES = 0.2
_PROCESSES_DIFFER = 0.10


@dataclass(frozen=True)
class State:
    """A machine at one moment. What it does not tell is None.

    Attributes:
        at: Seconds of a steady clock.
        own_s: CPU seconds of this process.
        busy_s: CPU seconds of all processes since the machine started.
        stolen_s: CPU seconds that a hypervisor gave to others.
        throttled: How often heat or current has slowed the machine; grows.
        throttling: What slows it right now.
        mhz: Fastest core's clock.
        celsius: Hottest sensor.
        gpu_others: Other processes that compute on the GPU.
        gpu_mhz: Clock of a desktop GPU.
        gpu_celsius: Its temperature.
    """

    at: float
    own_s: float
    busy_s: float | None = None
    stolen_s: float | None = None
    throttled: int | None = None
    throttling: tuple[str, ...] = ()
    mhz: float | None = None
    celsius: float | None = None
    gpu_others: int | None = None
    gpu_mhz: int | None = None
    gpu_celsius: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**asdict(self), "throttling": list(self.throttling)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> State:
        """Reads the JSON form."""
        return cls(**{**data, "throttling": tuple(data["throttling"])})


def snapshot(root: Path = Path("/")) -> State:
    """Looks at the machine; takes about a millisecond."""
    busy, stolen = _cpu_seconds(root)
    slowed, gpu = _nvml()
    counts = [*_counts(root, _THROTTLE_COUNTERS), *slowed]
    return State(
        at=time.perf_counter(),
        own_s=time.process_time(),
        busy_s=busy,
        stolen_s=stolen,
        throttled=sum(counts) if counts else None,
        throttling=_throttling(root),
        mhz=max((khz / 1e3 for khz in _counts(root, _CLOCKS)), default=None),
        celsius=max((max(0.0, milli / 1e3) for milli in _counts(root, _SENSORS)), default=None),  # one that is off: <0
        **gpu,
    )  # fmt: skip


_CLOCKS = ("sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq",)
_SENSORS = ("sys/class/thermal/thermal_zone*/temp",)
_THROTTLE_COUNTERS = (
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count",
    "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count",
    "sys/class/hwmon/hwmon*/oc*_event_cnt",  # a Jetson's over-current events
)


def _cpu_seconds(root: Path) -> tuple[float | None, float | None]:
    """Returns busy and stolen seconds of the cores that this process may use."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    busy = stolen = 0
    try:
        lines = (root / "proc/stat").read_text(encoding="ascii").splitlines()
        cores = {line.split()[0]: [int(n) for n in line.split()[1:9]] for line in lines if line.startswith("cpu")}
        for core in usable:
            user, nice, system, _, _, irq, softirq, steal = cores[f"cpu{core}"]
            busy += user + nice + system + irq + softirq
            stolen += steal
    except (OSError, ValueError, KeyError):
        return None, None
    tick = os.sysconf("SC_CLK_TCK")
    return busy / tick, stolen / tick


def _counts(root: Path, patterns: Sequence[str]) -> list[int]:
    found = []
    for pattern in patterns:
        for path in root.glob(pattern):
            with suppress(OSError, ValueError):
                found.append(int(path.read_text()))
    return found


def _throttling(root: Path) -> tuple[str, ...]:
    """Returns the active cooling devices whose names say that they slow the machine; a fan does not."""
    found = []
    for folder in sorted(root.glob("sys/class/thermal/cooling_device*")):
        with suppress(OSError, ValueError):
            kind = (folder / "type").read_text().strip()
            if "throttle" in kind.lower() and int((folder / "cur_state").read_text()) > 0:
                found.append(kind)
    return tuple(found)


def _nvml() -> tuple[list[int], dict[str, int]]:
    """Returns how long (ns) heat and power have slowed a desktop GPU, and its part of the state; or nothing."""
    if not host.has_nvidia_device() or l4t_release() is not None:
        return [], {}
    try:
        import pynvml

        device = nvml_device(pynvml)
    except (ImportError, EngineError):
        return [], {}

    def asked(function: str, *arguments: Any) -> Any:
        try:
            return getattr(pynvml, function)(device, *arguments)
        except pynvml.NVMLError:  # each board answers some questions
            return None

    policies = (pynvml.NVML_PERF_POLICY_POWER, pynvml.NVML_PERF_POLICY_THERMAL)
    slowed = [
        v.violationTime for policy in policies if (v := asked("nvmlDeviceGetViolationStatus", policy)) is not None
    ]
    state = {
        "gpu_mhz": asked("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
        "gpu_celsius": asked("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
    }
    running = asked("nvmlDeviceGetComputeRunningProcesses")
    if running is not None:  # one of them is this one, under its number on the host
        state["gpu_others"] = max(0, len(running) - 1)
    return [int(v) for v in slowed], {name: int(v) for name, v in state.items() if v is not None}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\x00\n ")
    except OSError:
        return ""


@dataclass(frozen=True)
class Conditions:
    """What a measurement is worth.

    Attributes:
        invalid: Why its absolute figures are not to be believed; empty where they are.
        warnings: What makes them less stable, each with its remedy.
        periods: State before and after the measuring of each process.
    """

    invalid: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    periods: tuple[tuple[State, State], ...] = ()

    @property
    def valid(self) -> bool:
        """Whether the figures can be believed."""
        return not self.invalid

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "valid": self.valid,
            "invalid": list(self.invalid),
            "warnings": list(self.warnings),
            "periods": [[state.to_dict() for state in period] for period in self.periods],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Conditions:
        """Reads the JSON form."""
        periods = tuple((State.from_dict(before), State.from_dict(after)) for before, after in data["periods"])
        return cls(tuple(data["invalid"]), tuple(data["warnings"]), periods)


def judge(periods: Sequence[tuple[State, State]], *, cores: int, threads: int, on_cpu: bool) -> Conditions:
    """Says what was wrong while something was measured.

    Args:
        periods: State before and after each stretch of measuring.
        cores: That could be used.
        threads: That computed; 0 for all cores.
        on_cpu: Whether the processor did the work: then a process that had less than its time was starved.
    """
    invalid, warnings = [], []
    threads = threads or cores
    for problem in _PROBLEMS:
        texts = [text for before, after in periods if (text := problem(before, after, cores, threads, on_cpu))]
        if texts:
            many = "" if len(periods) == 1 else f" (in {len(texts)} of {len(periods)} processes)"
            invalid.append(f"{texts[0]}{many}")
    others = [x for before, after in periods if (x := _others(before, after)) is not None]
    if others and not invalid and max(others) > _BUSY_CORES:
        warnings.append(f"other processes kept {max(others):.1f} cores busy: close them")
    return Conditions(tuple(invalid), tuple(warnings), tuple(periods))


def _others(before: State, after: State) -> float | None:
    """Returns how many cores other processes kept busy."""
    if before.busy_s is None or after.busy_s is None or after.at <= before.at:
        return None
    own = after.own_s - before.own_s
    return max(0.0, (after.busy_s - before.busy_s - own) / (after.at - before.at))


def _heat(before: State, after: State, cores: int, threads: int, on_cpu: bool) -> str | None:
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        return "the machine throttled: let it cool, or cool it better, and run again"
    active = {*before.throttling, *after.throttling}
    if active:
        return f"the machine throttles ({', '.join(sorted(active))}): let it cool, or cool it better, and run again"
    return None


def _theft(before: State, after: State, cores: int, threads: int, on_cpu: bool) -> str | None:
    if before.stolen_s is None or after.stolen_s is None or after.at <= before.at:
        return None
    share = (after.stolen_s - before.stolen_s) / (after.at - before.at)
    if share <= _STOLEN * min(threads, cores):
        return None
    return f"the hypervisor gave {share:.0%} of a core to others: use a host of your own, or believe ratios alone"


def _starvation(before: State, after: State, cores: int, threads: int, on_cpu: bool) -> str | None:
    others = _others(before, after)
    if others is not None and others > cores - min(threads, cores) + _BUSY_CORES:
        return f"other processes took the cores ({others:.1f} of {cores} busy): close them and run again"
    wall = after.at - before.at
    if on_cpu and threads == 1 and wall > 0 and (share := (after.own_s - before.own_s) / wall) < 1 - _STARVED:
        return f"the measuring thread had a core for {share:.0%} of the time: close other programs and run again"
    return None


def _gpu_company(before: State, after: State, cores: int, threads: int, on_cpu: bool) -> str | None:
    others = max(before.gpu_others or 0, after.gpu_others or 0)
    if on_cpu or not others:
        return None
    return f"{others} other processes compute on the GPU: stop them (nvidia-smi lists them) and run again"


_PROBLEMS: tuple[Callable[[State, State, int, int, bool], str | None], ...] = (
    _heat, _theft, _starvation, _gpu_company,
)  # fmt: skip


def instabilities(facts: Mapping[str, Any], medians_ns: Sequence[Sequence[float]], steady: bool) -> list[str]:
    """Returns what makes this machine's figures unstable, each with its remedy.

    Args:
        facts: As `fingerprint` returns them.
        medians_ns: Median of each process, by side.
        steady: Whether every warm-up came to rest.
    """
    found = []
    governor = facts.get("governor")
    if governor not in (None, "performance"):
        found.append(f"the governor is {governor}: sudo cpupower frequency-set -g performance")
    board = facts.get("jetson") or {}
    if board.get("clocks_locked") is False:
        found.append("the GPU's clock moves with its load: sudo jetson_clocks (and --restore afterwards)")
    mode = board.get("power_mode")
    if mode is not None and not mode.upper().startswith("MAXN"):
        found.append(f"power mode {mode}: figures hold for this mode alone; sudo nvpmodel -m 0 gives the largest")
    if not steady:
        found.append("the warm-up did not come to rest: give more --seconds, or lock the clocks")
    spreads = [max(m) / min(m) - 1 for m in medians_ns if len(m) > 1 and min(m) > 0]
    if spreads and statistics.median(spreads) > _PROCESSES_DIFFER:
        found.append(
            f"the same model's median differs by {statistics.median(spreads):.0%} between processes: believe ratios, "
            "not milliseconds; lock the clocks, or give more --processes"
        )
    return found


def fingerprint(root: Path = Path("/")) -> dict[str, Any]:
    """Returns `edgetl.host.facts` with the state of a Jetson, clock, temperature, and ``machine``: who this is.

    ``machine`` is a hash of what does not change, None where nothing tells this machine from another of its type:
    results of two machines are never put together.
    """
    facts = host.facts()
    board = jetson(root)
    now = snapshot(root)
    fixed = [facts[name] for name in ("cpu", "arch", "gpus", "board")]
    identity = [_text(root / path) for path in ("etc/machine-id", "proc/device-tree/serial-number")]
    return {
        **facts,
        "mhz": now.mhz,
        "celsius": now.celsius,
        "jetson": None if board is None else board.to_dict(),
        "machine": hashlib.sha256(repr((fixed, identity, "edgetl")).encode()).hexdigest()[:16]
        if any(identity)
        else None,
    }
