"""Plans are native code: what is damaged, planted or made for something else never leaves the store."""

import contextlib
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.compile import PlanKey, PlanStore, default_cache, read_record
from edgetl.errors import EngineError, InputError

MACHINE = {"gpu": {"name": "Orin", "sm": 87}, "cuda_driver": 12060, "l4t": "36.4.3"}
KEY = PlanKey("tensorrt", "10.3.0", "Linux", "aarch64", (87,), "a" * 64, {"max_batch": 8}, 16, MACHINE)
PLAN = np.random.default_rng(0).bytes(5000)


@pytest.fixture
def store(tmp_path):
    found = PlanStore(tmp_path / "plans")
    found.put(KEY, PLAN, {"variant": "fp16"})
    return found


def record_of(store):
    (path,) = store.root.glob("*.json")
    return path


def plan_of(store):
    (path,) = store.root.glob("*.plan")
    return path


def test_what_was_put_is_found_again_in_a_folder_of_ones_own(store):
    found = store.find(KEY)
    assert (found.plan, found.record["variant"], found.reason) == (PLAN, "fp16", "")
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert found.record["sha256"] == hashlib.sha256(PLAN).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"version": "10.3.1"},
        {"product": "tensorrt-rtx"},
        {"graph_sha256": "b" * 64},
        {"settings": {"max_batch": 4}},
        {"machine": {**MACHINE, "cuda_driver": 12080}},
        {"machine": {**MACHINE, "gpu": {"name": "Orin Nano", "sm": 87}}},
        {"machine": None},
        {"sms": (86,)},
        {"processor": "x86_64"},
    ],
)
def test_another_key_finds_nothing(store, change):
    found = store.find(replace(KEY, **change))
    assert (found.plan, found.reason) == (None, "")


@given(st.integers(0, len(PLAN) * 8 - 1))
@settings(max_examples=60, deadline=None)
def test_one_flipped_bit_is_enough(tmp_path_factory, bit):
    store = PlanStore(tmp_path_factory.mktemp("bits"))
    store.put(KEY, PLAN, {})
    data = bytearray(PLAN)
    data[bit // 8] ^= 1 << bit % 8
    plan_of(store).write_bytes(data)
    found = store.find(KEY)
    assert found.plan is None
    assert "is damaged or was replaced (sha256 differs)" in found.reason


@pytest.mark.parametrize("size", [0, 1, 4999])
def test_a_truncated_plan_is_refused(store, size):
    plan_of(store).write_bytes(PLAN[:size])
    assert "sha256 differs" in store.find(KEY).reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "is no record of format 1"),
        ('{"format_version": 2}', "is no record of format 1"),
        ('{"format_version": 1}', "lacks 'key'"),
        ("[" * 100_000, ""),
    ],
)
def test_a_damaged_record_is_a_plan_less(store, record, reason):
    record_of(store).write_text(record)
    found = store.find(KEY)
    assert found.plan is None
    assert reason in found.reason


def rewritten(store, **fields):
    path = record_of(store)
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_record_of_another_key_under_this_ones_name_is_refused(store):
    rewritten(store, key=replace(KEY, version="9").to_dict())
    assert "its key is another one" in store.find(KEY).reason


@pytest.mark.parametrize("name", ["../planted.plan", "/tmp/planted.plan", "planted", 7, ""])
def test_a_record_cannot_point_out_of_its_folder(store, name):
    (store.root.parent / "planted.plan").write_bytes(PLAN)
    rewritten(store, plan=name)
    assert "names no plan of this folder" in store.find(KEY).reason


def test_a_link_is_not_followed(store):
    elsewhere = store.root.parent / "elsewhere.plan"
    plan_of(store).rename(elsewhere)
    (store.root / json.loads(record_of(store).read_text())["plan"]).symlink_to(elsewhere)
    assert "cannot be read" in store.find(KEY).reason


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_could_write_is_refused(store, mode):
    plan_of(store).chmod(mode)
    assert "could have been written by somebody else" in store.find(KEY).reason


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_refused_at_once(store, mode):
    store.root.chmod(mode)
    with pytest.raises(EngineError, match=r"others can write to it, and plans are native code: chmod 700"):
        PlanStore(store.root)
    with pytest.raises(EngineError, match="others can write to it"):
        store.put(KEY, PLAN, {})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_somebody_else_is_refused(store):
    os.chown(plan_of(store), 12345, 12345)
    assert "could have been written by somebody else" in store.find(KEY).reason
    os.chown(store.root, 12345, 12345)
    with pytest.raises(EngineError, match="belongs to another user"):
        PlanStore(store.root)


def test_a_link_to_a_folder_is_no_folder(store, tmp_path):
    (tmp_path / "link").symlink_to(store.root)
    with pytest.raises(EngineError, match="is no folder"):
        PlanStore(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_cannot_be_read_is_one_line(store):
    os.seteuid(12345)
    try:
        with pytest.raises(EngineError, match=r"cannot (be )?read"):
            PlanStore(store.root)
        with pytest.raises(EngineError, match=r"cannot be read \(Permission denied\); name another folder"):
            PlanStore(store.root / "inner")
    finally:
        os.seteuid(0)


def test_a_user_without_a_home_is_told_what_to_do(monkeypatch):
    for name in ("EDGETL_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(EngineError, match="name a folder by EDGETL_CACHE"):
        default_cache()


def test_a_folder_that_cannot_be_made_names_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="name another folder"):
        PlanStore(tmp_path / "file" / "plans").put(KEY, PLAN, {})


def test_a_new_plan_of_the_same_key_replaces_the_old(store):
    store.put(KEY, PLAN[::-1], {"variant": "fp16"})
    assert store.find(KEY).plan == PLAN[::-1]
    assert len(list(store.root.glob("*.plan"))) == 1


def test_killed_in_the_middle_of_writing_it_holds_a_whole_plan_or_none(tmp_path):
    """Fifty times: another process rewrites one key with plans of 2 MB, and is killed by SIGKILL."""
    chance = random.Random(0)
    plans = [np.random.default_rng(i).bytes(2_000_000) for i in range(2)]
    store, taken = PlanStore(tmp_path / "plans"), 0
    for _ in range(50):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                for number in range(1000):
                    store.put(KEY, plans[number % 2], {"number": number})
            os._exit(0)
        time.sleep(chance.uniform(0.001, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = store.find(KEY)
        assert found.plan in (None, *plans)
        if found.plan is not None:
            taken += 1
            assert found.plan == plans[found.record["number"] % 2]
    assert taken > 25
    store.put(KEY, PLAN, {})
    assert store.find(KEY).plan == PLAN


WAITS = """
import json, sys
from pathlib import Path
from edgetl.compile import PlanKey, PlanStore
store, key = PlanStore(Path(sys.argv[1])), PlanKey.from_dict(json.loads(sys.argv[2]))
print("waiting", flush=True)
with store.building(key):
    print(store.find(key).record["variant"])
"""


def test_one_process_builds_and_the_others_wait(store):
    command = [sys.executable, "-c", WAITS, str(store.root), json.dumps(KEY.to_dict())]
    with store.building(KEY):
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "waiting\n"
        time.sleep(0.1)
        assert other.poll() is None
        store.put(KEY, PLAN, {"variant": "built meanwhile"})
    assert other.communicate(timeout=20)[0] == "built meanwhile\n"


def test_facts_are_remembered_and_what_is_planted_is_forgotten(store):
    store.remember("choice.abc", {"chosen": "fp16"})
    assert store.recall("choice.abc")["chosen"] == "fp16"
    assert store.recall("choice.other") is None
    (store.root / "choice.abc.note").chmod(0o666)
    assert store.recall("choice.abc") is None


# --- plans that are carried


CARRIED = replace(KEY.carried, product="tensorrt-rtx", sms=(86, 89), multiprocessors=None)
HERE = replace(CARRIED, sms=(89,), machine=MACHINE, settings={"max_batch": 2})


@pytest.fixture
def carried(tmp_path):
    store = PlanStore(tmp_path / "carried")
    store.put(CARRIED, PLAN, {"variant": "fp16"}, name="parts.fp16.rtx")
    return store


def test_a_carried_plan_fits_any_of_its_gpus_whatever_its_settings(carried):
    assert carried.find_fitting(HERE).plan == PLAN
    assert "Orin" not in record_of(carried).read_text()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sms": (120,)}, "it was built for SM 86, 89, this GPU is SM 120"),
        ({"version": "1.8"}, "its version is 10.3.0, here it is 1.8"),
        ({"product": "tensorrt"}, "its product is tensorrt-rtx, here it is tensorrt"),
        ({"processor": "x86_64"}, "its processor is aarch64, here it is x86_64"),
        ({"system": "Windows"}, "its system is Linux, here it is Windows"),
        ({"graph_sha256": "c" * 64}, "its graph is aaaaaaaaaaaa, here it is cccccccccccc"),
    ],
)
def test_a_carried_plan_that_does_not_fit_says_why(carried, change, reason):
    found = carried.find_fitting(replace(HERE, **change))
    assert found.plan is None
    assert found.reason.endswith(f"parts.fp16.rtx.json: {reason}")


def test_a_plan_that_was_tuned_fits_gpus_of_as_many_multiprocessors_and_no_other_machines_own(tmp_path):
    store = PlanStore(tmp_path / "tuned")
    store.put(KEY.carried, PLAN, {})
    other = {"gpu": {"name": "Orin Nano"}}
    assert store.find_fitting(replace(KEY, machine=other)).plan == PLAN
    assert (
        "tuned on a GPU of 16 multiprocessors, here are 8" in store.find_fitting(replace(KEY, multiprocessors=8)).reason
    )
    own = PlanStore(tmp_path / "own")
    own.put(KEY, PLAN, {})
    assert own.find_fitting(KEY).plan == PLAN
    assert "is another machine's own" in own.find_fitting(replace(KEY, machine=other)).reason


def test_a_damaged_carried_plan_and_an_empty_folder_say_so(carried, tmp_path):
    plan_of(carried).write_bytes(b"x")
    assert "sha256 differs" in carried.find_fitting(HERE).reason
    (tmp_path / "none").mkdir(mode=0o700)
    assert PlanStore(tmp_path / "none").find_fitting(HERE).reason.endswith("has no plans")


def test_a_record_is_read_by_its_own_name_or_its_plans(carried):
    carried.put(CARRIED, PLAN, {"variant": "fp16", "report": {}}, name="parts.fp16.rtx")
    assert read_record(plan_of(carried)) == read_record(record_of(carried))
    with pytest.raises(InputError, match="is no record of a plan"):
        read_record(carried.root / "other.json")


@given(
    st.builds(
        PlanKey,
        *[st.text(max_size=5)] * 4,
        st.lists(st.integers(50, 130), max_size=3).map(tuple),
        st.text(max_size=5),
        st.dictionaries(st.text(max_size=3), st.integers()),
        st.none() | st.integers(1, 200),
        st.none() | st.dictionaries(st.text(max_size=3), st.integers()),
    )
)
def test_a_key_survives_json(key):
    again = PlanKey.from_dict(json.loads(json.dumps(key.to_dict())))
    assert again == key
    assert again.digest == key.digest
    assert key.carried.misfit(key) is None


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "edgetl" / "plans"
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"
    monkeypatch.delenv("EDGETL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "edgetl" / "plans"
