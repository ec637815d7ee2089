"""Energy of inference: power rails of a Jetson, NVIDIA's GPUs by NVML, processors by RAPL. Idle power is subtracted.

Sources: the hwmon interface of the Linux kernel (in*_input millivolts, curr*_input milliamperes, power*_input
microwatts), jetson_stats for which rails count, the powercap interface for RAPL (energy_uj, microjoules, which wraps).
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from edgetl.errors import EngineError

__all__ = ["EnergyResult", "JetsonRails", "Meter", "Nvml", "Rapl", "measure_energy", "meters", "nvml_device"]

_TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
_UNUSED = ("NC", "sum of shunt voltages", "")
_INTERVAL_S = 0.01
_FEWEST_SAMPLES = 20
_LARGEST_GAP = 0.25  # of the run


class Meter(Protocol):
    """Something that tells joules.

    Attributes:
        name: For people.
    """

    name: str

    def joules(self) -> float:
        """Returns the energy since some moment in the past; only differences mean something.

        Raises:
            EngineError: It does not answer.
        """


class JetsonRails:
    """The power monitors of a Jetson module. The carrier board is not measured, but for Thor's, whose input it is.

    They tell power, not energy: `joules` adds up what passed since it was last asked, so it wants to be asked often.

    Args:
        root: Of the file system.

    Attributes:
        name: For people, with the rails that are added.
        rails: Label and file of each rail that counts.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.rails = _rails(root)
        if not self.rails:
            raise EngineError("this machine has no power rails that can be read")
        self.name = f"rails {' + '.join(rail.label for rail in self.rails)}"
        self._sum = 0.0
        self._last: tuple[float, float] | None = None

    def watts(self) -> float:
        """Returns the power of the module now.

        Raises:
            EngineError: A monitor does not answer.
        """
        try:
            return sum(rail.watts() for rail in self.rails)
        except (OSError, ValueError) as error:
            raise EngineError(f"a power rail does not answer ({error})") from None

    def joules(self) -> float:
        """Returns the energy since the first call: the trapezoids between the powers that were read."""
        now, power = time.perf_counter(), self.watts()
        if self._last is not None:
            before, earlier = self._last
            self._sum += (now - before) * (power + earlier) / 2
        self._last = (now, power)
        return self._sum


@dataclass(frozen=True)
class _Rail:
    label: str
    millivolts: Path | None
    milliamperes: Path | None
    microwatts: Path | None

    def watts(self) -> float:
        if self.microwatts is not None:
            return int(self.microwatts.read_text()) / 1e6
        assert self.millivolts is not None
        assert self.milliamperes is not None
        return int(self.millivolts.read_text()) * int(self.milliamperes.read_text()) / 1e6


def _rails(root: Path) -> tuple[_Rail, ...]:
    """Returns the rails that add up to the module's power: the one at its input where there is one, or else all."""
    found = []
    for chip in sorted(root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*")):
        for channel in (1, 2, 3):  # channel 7 is the monitor's own sum
            label = _text(chip / f"in{channel}_label")
            files = chip / f"in{channel}_input", chip / f"curr{channel}_input"
            if label not in (None, *_UNUSED) and all(path.exists() for path in files):
                found.append(_Rail(str(label), *files, None))
    for chip in sorted(root.glob("sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*")):
        label = _text(chip / "power1_label") or _text(chip / "in1_label") or "VIN"
        if (chip / "power1_input").exists() and label not in _UNUSED:
            found.append(_Rail(label, None, None, chip / "power1_input"))
    whole = [rail for rail in found if rail.label in _TOTALS]
    return tuple(whole[:1] or found)


class Rapl:
    """The energy counters of an Intel or AMD processor's packages.

    Args:
        root: Of the file system.

    Raises:
        EngineError: There are none, or this user cannot read them.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        zones = [
            zone
            for zone in sorted(root.glob("sys/class/powercap/intel-rapl:*"))
            if (_text(zone / "name") or "").startswith("package")
        ]
        if not zones:
            raise EngineError("this processor tells no energy (no RAPL)")
        try:
            self._zones = [_Counter(zone) for zone in zones]
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no number"
            raise EngineError(
                f"{zones[0]}/energy_uj cannot be read ({reason}): sudo chmod a+r /sys/class/powercap/*/energy_uj"
            ) from None
        self.name = f"RAPL of {len(zones)} package{'s' if len(zones) > 1 else ''}"

    def joules(self) -> float:
        """Returns the energy of all packages since this meter was made."""
        try:
            return sum(zone.joules() for zone in self._zones)
        except (OSError, ValueError) as error:
            raise EngineError(f"RAPL does not answer ({error})") from None


class _Counter:
    """A counter of microjoules that starts again at 0 behind its largest value."""

    def __init__(self, zone: Path) -> None:
        self._path = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._last = int(self._path.read_text())
        self._sum = 0

    def joules(self) -> float:
        now = int(self._path.read_text())
        self._sum += (now - self._last) % (self._range + 1)
        self._last = now
        return self._sum / 1e6


class Nvml:
    """The energy counter of an NVIDIA GPU that is no Jetson's.

    Raises:
        EngineError: There is no such GPU, or it counts no energy.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError:
            raise EngineError("a GPU's energy needs NVIDIA's bindings: pip install nvidia-ml-py") from None
        self._nvml: Any = pynvml
        self._handle = nvml_device(pynvml)
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            name = pynvml.nvmlDeviceGetName(self._handle)
        except pynvml.NVMLError as error:
            raise EngineError(f"this machine's GPU tells no energy ({error})") from None
        self.name = f"NVML of {name.decode() if isinstance(name, bytes) else name}"

    def joules(self) -> float:
        """Returns the energy since the driver was loaded."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            raise EngineError(f"NVML does not answer ({error})") from None


def nvml_device(pynvml: Any) -> Any:
    """Returns NVML's handle of the GPU that CUDA uses first: NVML counts all, ``CUDA_VISIBLE_DEVICES`` chooses.

    Raises:
        EngineError: There is no such GPU.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    try:
        pynvml.nvmlInit()
        if first.isdecimal():
            return pynvml.nvmlDeviceGetHandleByIndex(int(first))
        return pynvml.nvmlDeviceGetHandleByUUID(first)
    except pynvml.NVMLError as error:
        raise EngineError(f"this machine's GPU does not answer NVML ({error})") from None


def meters(root: Path = Path("/")) -> tuple[list[Meter], list[str]]:
    """Returns every meter of this machine, and why the others cannot be had."""
    found: list[Meter] = []
    reasons = []
    makers: Sequence[Callable[[], Meter]] = (lambda: JetsonRails(root), Nvml, lambda: Rapl(root))
    for make in makers:
        meter, reason = _made(make)
        found += [meter] if meter is not None else []
        reasons += [reason] if reason is not None else []
    return found, reasons


def _made(make: Callable[[], Meter]) -> tuple[Meter | None, str | None]:
    try:
        return make(), None
    except EngineError as error:
        return None, str(error)


@dataclass(frozen=True)
class EnergyResult:
    """What some work cost beyond idling.

    Attributes:
        meter: Its name.
        joules: All that was used while it ran, idle power included.
        idle_watts: Power before it ran.
        seconds: It ran.
        count: Of what it did, inferences for example.
        samples: How often the meter was asked meanwhile.
        problem: Why the figure is not to be believed; None where it is.
    """

    meter: str
    joules: float
    idle_watts: float
    seconds: float
    count: int
    samples: int
    problem: str | None = None

    @property
    def joules_each(self) -> float:
        """Energy of one inference beyond idling; a difference, so that noise can make it negative."""
        return (self.joules - self.idle_watts * self.seconds) / self.count

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**self.__dict__, "joules_each": self.joules_each}


def measure_energy(meter: Meter, work: Callable[[], int], *, idle_s: float = 2.0) -> EnergyResult:
    """Runs some work under a meter.

    Args:
        meter: To ask.
        work: Runs for some seconds, and returns how often it did what counts; at least once.
        idle_s: Time of doing nothing before, whose power is subtracted.

    Raises:
        EngineError: The meter does not answer at the beginning.
    """
    with _Watch(meter) as idle:
        time.sleep(idle_s)
    with _Watch(meter) as busy:
        count = work()
    idle_watts = idle.joules / idle.seconds if idle.seconds else 0.0
    problem = busy.problem or (None if idle.problem is None else f"idle power: {idle.problem}")
    return EnergyResult(meter.name, busy.joules, idle_watts, busy.seconds, count, len(busy.gaps), problem)


@dataclass
class _Watch:
    """Asks a meter every hundredth of a second, and checks that it could."""

    meter: Meter
    joules: float = 0.0
    seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)
    problem: str | None = None

    def __enter__(self) -> _Watch:
        self._finished = threading.Event()
        self._began_j, self._began = self.meter.joules(), time.perf_counter()
        self._thread = threading.Thread(target=self._ask, name="edgetl energy", daemon=True)
        self._thread.start()
        return self

    def _read(self) -> float | None:
        try:
            return None if self.problem else self.meter.joules()
        except EngineError as error:
            self.problem = f"the meter stopped answering: {error}"
            return None

    def _ask(self) -> None:
        before = self._began
        while not self._finished.wait(_INTERVAL_S):
            if self._read() is None:
                return
            now = time.perf_counter()
            self.gaps.append(now - before)
            before = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.set()
        self._thread.join()
        last, ended = self._read(), time.perf_counter()
        self.seconds = ended - self._began
        if error is not None or last is None:
            return
        self.joules = last - self._began_j
        self.gaps.append(self.seconds - sum(self.gaps))
        if len(self.gaps) < _FEWEST_SAMPLES:
            self.problem = f"the meter was asked {len(self.gaps)} times, {_FEWEST_SAMPLES} are needed: run longer"
        elif max(self.gaps) > _LARGEST_GAP * self.seconds:
            self.problem = (
                f"the meter was not asked for {max(self.gaps):.2f} s of {self.seconds:.2f} "
                f"(usually every {statistics.median(self.gaps) * 1e3:.0f} ms): run longer, with a core to spare"
            )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
