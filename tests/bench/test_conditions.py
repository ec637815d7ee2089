"""Whether a machine was fit to be measured: on states made by hand, on fake trees, and on this machine."""

import os
import time

import pytest

from edgetl.bench.conditions import State, fingerprint, instabilities, judge, snapshot


def period(seconds=10.0, own=None, others=0.0, stolen=0.0, **after):
    """Ten seconds in which one thread computed."""
    own = seconds if own is None else own
    before = {key: value for key, value in {"throttled": 0}.items() if key in after}
    return (
        State(0.0, 0.0, 100.0, 5.0, **before),
        State(seconds, own, 100.0 + own + others, 5.0 + stolen, **after),
    )


def judged(*periods, cores=2, threads=1, on_cpu=True):
    return judge(periods, cores=cores, threads=threads, on_cpu=on_cpu)


def test_a_quiet_machine_is_fit():
    found = judged(period(), period(others=1.0))
    assert found.valid
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ({"throttled": 3}, "the machine throttled: let it cool"),
        ({"throttling": ("gpu-throttle-alert",)}, r"the machine throttles \(gpu-throttle-alert\)"),
        ({"stolen": 1.0}, "the hypervisor gave 10% of a core to others"),
        ({"others": 15.0}, r"other processes took the cores \(1.5 of 2 busy\)"),
        ({"own": 9.0}, "had a core for 90% of the time"),
    ],
)
def test_what_makes_a_run_invalid(what, text):
    found = judged(period(**what))
    assert not found.valid
    [reason] = found.invalid
    assert __import__("re").search(text, reason)
    assert f"{reason} (in 1 of 3 processes)" in judged(period(), period(**what), period()).invalid


def test_others_may_have_the_cores_that_nobody_wants():
    assert judged(period(others=9.0)).valid
    assert "kept 0.9 cores busy: close them" in judged(period(others=9.0)).warnings[0]
    assert not judged(period(others=9.0, own=19.0), threads=2).valid


def test_a_gpu_that_others_use():
    assert judged(period(gpu_others=2)).valid
    assert "2 other processes compute on the GPU" in judged(period(own=1.0, gpu_others=2), on_cpu=False).invalid[0]
    assert judged(period(own=1.0), on_cpu=False).valid  # the processor waits for the GPU


def test_what_is_not_told_is_not_held_against_the_machine():
    assert judged((State(0.0, 0.0), State(10.0, 10.0))).valid


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_fake_tree_of_a_jetson_is_read(tmp_path, monkeypatch):
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {core})
    others = "cpu999 9 9 9 9 9 9 9 9 0 0\n"  # of a core that this process may not use
    write(tmp_path, "proc/stat", f"cpu  1 1 1 1 1 1 1 1 0 0\ncpu{core} 100 20 30 4000 50 6 7 80 0 0\n{others}")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "48500\n")
    write(tmp_path, "sys/class/thermal/thermal_zone1/temp", "-256000\n")
    write(tmp_path, "sys/class/thermal/cooling_device0/type", "pwm-fan\n")
    write(tmp_path, "sys/class/thermal/cooling_device0/cur_state", "3\n")
    write(tmp_path, "sys/class/thermal/cooling_device1/type", "cpu-throttle-alert\n")
    write(tmp_path, "sys/class/thermal/cooling_device1/cur_state", "1\n")
    write(tmp_path, "sys/class/hwmon/hwmon1/oc1_event_cnt", "2\n")
    write(tmp_path, "sys/class/hwmon/hwmon1/oc3_event_cnt", "5\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1510400\n")
    write(tmp_path, "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "2201600\n")
    state = snapshot(tmp_path)
    tick = os.sysconf("SC_CLK_TCK")
    assert state.busy_s == pytest.approx(163 / tick)
    assert state.stolen_s == pytest.approx(80 / tick)
    assert (state.celsius, state.mhz, state.throttled) == (48.5, 2201.6, 7)
    assert state.throttling == ("cpu-throttle-alert",)
    assert State.from_dict(state.to_dict()) == state
    assert snapshot(tmp_path / "nothing").busy_s is None


def test_this_machine_counts_what_this_process_does():
    before = snapshot()
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    after = snapshot()
    assert after.own_s - before.own_s > 0.05
    assert after.busy_s is None or after.busy_s - before.busy_s > 0.05


def test_instabilities_name_their_remedy():
    facts = {"governor": "powersave", "jetson": {"clocks_locked": False, "power_mode": "15W"}}
    found = instabilities(facts, [[1.0, 1.5]], steady=False)
    for remedy in ("cpupower frequency-set", "jetson_clocks", "nvpmodel -m 0", "--seconds", "--processes"):
        assert any(remedy in text for text in found), remedy
    assert instabilities({"governor": "performance", "jetson": None}, [[1.0, 1.01]], steady=True) == []
    calm = {"governor": None, "jetson": {"clocks_locked": True, "power_mode": "MAXN_SUPER"}}
    assert instabilities(calm, [[1.0]], steady=True) == []


def test_machines_are_told_apart(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for root, name in ((one, "a"), (other, "b")):
        write(root, "etc/machine-id", f"{name * 32}\n")
    assert fingerprint(one)["machine"] == fingerprint(one)["machine"] != fingerprint(other)["machine"]
    assert "a" * 32 not in str(fingerprint(one))
    assert fingerprint(tmp_path / "a container without a name")["machine"] is None
