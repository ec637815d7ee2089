"""Watts by hand: trees of files with the fields that boards have, and counters that wrap."""

import threading
import time

import pytest

from edgetl.bench import energy
from edgetl.bench.energy import JetsonRails, Rapl, measure_energy, meters
from edgetl.errors import EngineError


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def ina3221(address, number, *channels):
    """Files of one monitor: (label, millivolts, milliamperes) of each channel."""
    folder = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{number}"
    files = {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": 99}
    for channel, (label, volts, amperes) in enumerate(channels, start=1):
        files |= {
            f"{folder}/in{channel}_label": label,
            f"{folder}/in{channel}_input": volts,
            f"{folder}/curr{channel}_input": amperes,
        }
    return files


ORIN_NANO = ina3221("1-0040", 1, ("VDD_IN", 4960, 1120), ("VDD_CPU_GPU_CV", 4960, 304), ("VDD_SOC", 4944, 312))
AGX_ORIN = {
    **ina3221("1-0040", 3, ("VDD_GPU_SOC", 19_800, 120), ("VDD_CPU_CV", 19_800, 40), ("VIN_SYS_5V0", 5_000, 700)),
    **ina3221("1-0041", 4, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 1_800, 500), ("NC", 0, 0)),
}
THOR = {
    "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon5/power1_input": 23_450_000,
    "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon5/in1_label": "VIN",
    **ina3221("2-0040", 6, ("VDD_GPU", 800, 1000), ("VDD_CPU_SOC_MSS", 900, 2000), ("VIN_SYS_5V0", 5000, 100)),
}


@pytest.mark.parametrize(
    ("files", "watts", "labels"),
    [
        (ORIN_NANO, 4.960 * 1.120, ["VDD_IN"]),  # the module's input holds the others
        (
            AGX_ORIN,
            19.8 * 0.120 + 19.8 * 0.040 + 5.0 * 0.700 + 1.8 * 0.500,
            ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"],
        ),
        (THOR, 23.45, ["VIN"]),
    ],
    ids=["Orin Nano", "AGX Orin", "Thor"],
)
def test_watts_of_boards(tmp_path, files, watts, labels):
    rails = JetsonRails(tree(tmp_path, files))
    assert rails.watts() == pytest.approx(watts)
    assert [rail.label for rail in rails.rails] == labels


def test_no_rails(tmp_path):
    with pytest.raises(EngineError, match="no power rails"):
        JetsonRails(tmp_path)
    with pytest.raises(EngineError, match="no power rails"):
        JetsonRails(tree(tmp_path, ina3221("1-0040", 1, ("NC", 5000, 10), ("NC", 1, 1), ("", 1, 1))))


def test_a_rail_that_fails_is_one_line(tmp_path):
    rails = JetsonRails(tree(tmp_path, THOR))
    (tmp_path / "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon5/power1_input").write_text("")
    with pytest.raises(EngineError, match="a power rail does not answer"):
        rails.watts()


def test_power_is_added_up_to_energy(tmp_path, monkeypatch):
    clock = iter([10.0, 10.5, 11.5])
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(clock))
    rails = JetsonRails(tree(tmp_path, THOR))
    power = tmp_path / "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon5/power1_input"
    assert rails.joules() == 0
    power.write_text("33450000")
    assert rails.joules() == pytest.approx(0.5 * (23.45 + 33.45) / 2)
    assert rails.joules() == pytest.approx(0.5 * (23.45 + 33.45) / 2 + 33.45)


RAPL = {
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": 900_000,
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 999_999,
    "sys/class/powercap/intel-rapl:0:0/name": "core",  # inside the package
    "sys/class/powercap/intel-rapl:1/name": "package-1",
    "sys/class/powercap/intel-rapl:1/energy_uj": 5,
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": 999_999,
}


def test_a_processors_counter_wraps(tmp_path):
    meter = Rapl(tree(tmp_path, RAPL))
    zone = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    assert meter.joules() == 0
    zone.write_text("950000")
    assert meter.joules() == pytest.approx(0.05)
    zone.write_text("20000")  # 950000 .. 999999, then from 0
    assert meter.joules() == pytest.approx(0.05 + 0.07)
    assert meter.name == "RAPL of 2 packages"


def test_a_processor_that_tells_nothing(tmp_path):
    with pytest.raises(EngineError, match="no RAPL"):
        Rapl(tmp_path)
    files = tree(tmp_path, RAPL)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("?")
    with pytest.raises(EngineError, match="sudo chmod a\\+r"):
        Rapl(files)


def test_a_machine_tells_its_meters_and_why_it_lacks_the_others(tmp_path):
    found, reasons = meters(tree(tmp_path, {**RAPL, **AGX_ORIN}))
    assert [meter.name.split()[0] for meter in found] == ["rails", "RAPL"]
    assert len(reasons) == 1
    assert "GPU" in reasons[0]


class Steady:
    """A meter of 5 W when idle, 25 W while work is done."""

    name = "steady"

    def __init__(self):
        self.busy = False
        self._sum, self._last = 0.0, time.perf_counter()
        self._lock = threading.Lock()

    def joules(self):
        with self._lock:
            now = time.perf_counter()
            self._sum += (now - self._last) * (25 if self.busy else 5)
            self._last = now
            return self._sum


def working(meter, seconds, count):
    def work():
        meter.joules()
        meter.busy = True
        time.sleep(seconds)
        meter.joules()
        meter.busy = False
        return count

    return work


def with_a_core_to_spare(make, *, busy_s, idle_s, count=1):
    """Measures until this machine did not keep the meter waiting: with a busy one, the product says just that."""
    for attempt in range(1, 7):
        meter = make()
        result = measure_energy(meter, working(meter, attempt * busy_s, count), idle_s=attempt * idle_s)
        if "was not asked for" not in (result.problem or ""):
            break
    return result


def test_idle_power_is_subtracted():
    result = with_a_core_to_spare(Steady, busy_s=1.2, idle_s=0.9, count=100)
    assert result.idle_watts == pytest.approx(5, rel=0.02)
    assert result.joules == pytest.approx(25 * result.seconds, rel=0.1)
    assert result.joules_each == pytest.approx((25 - 5) * result.seconds / 100, rel=0.1)
    assert result.problem is None
    assert result.samples > 20
    assert result.to_dict()["joules_each"] == result.joules_each


def test_too_few_samples_are_told():
    assert "run longer" in with_a_core_to_spare(Steady, busy_s=0.05, idle_s=0.3).problem
    assert "idle power: the meter was asked" in with_a_core_to_spare(Steady, busy_s=0.9, idle_s=0.05).problem


@pytest.mark.parametrize(("while_busy", "phase"), [(True, ""), (False, "idle power: ")])
def test_a_meter_that_falls_silent_is_told(while_busy, phase):
    class Silent(Steady):
        def joules(self):
            if self.busy is while_busy and threading.current_thread().name == "edgetl energy":
                raise EngineError("a power rail does not answer (Input/output error)")
            return super().joules()

    problem = with_a_core_to_spare(Silent, busy_s=0.4, idle_s=0.4).problem
    assert problem == f"{phase}the meter stopped answering: a power rail does not answer (Input/output error)"


def test_a_meter_that_was_kept_waiting_is_told():
    class Slow(Steady):
        def joules(self):
            if self.busy and not self.delayed and threading.current_thread().name == "edgetl energy":
                self.delayed = True
                time.sleep(0.8)
            return super().joules()

    meter = Slow()
    meter.delayed = False
    assert "was not asked for 0." in measure_energy(meter, working(meter, 1.6, 1), idle_s=0.05).problem
