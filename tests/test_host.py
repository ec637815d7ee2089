"""edgetl.host: facts about the machine that runs these tests."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgetl import host


@pytest.mark.parametrize(
    ("machine", "arch"),
    [("x86_64", "x86"), ("AMD64", "x86"), ("aarch64", "arm"), ("arm64", "arm"), ("armv7l", "arm")],
)
def test_arch_is_the_form_of_int8(monkeypatch, machine, arch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert host.arch() == arch


def test_facts_are_json_with_the_documented_keys():
    facts = host.facts()

    assert list(facts) == [
        "cpu", "cores", "arch", "int8_dot", "memory_bytes", "available_bytes", "governor", "load_1m", "gpus", "board",
        "system", "versions",
    ]  # fmt: skip
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_facts_agree_with_the_system():
    facts = host.facts()

    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert facts["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert facts["system"] == platform.platform()
    assert facts["cpu"] == host.cpu_name() != ""
    assert facts["int8_dot"] == any(f in host.cpu_flags() for f in ("avx512_vnni", "avx_vnni", "asimddp", "i8mm"))
    assert facts["gpus"] == list(host.gpu_names())


def test_flags_are_those_of_the_first_processor():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    assert host.cpu_flags() == frozenset(line.split(":")[1].split())


def test_versions_name_installed_packages_alone():
    versions = host.versions()

    assert versions["python"] == platform.python_version()
    assert versions["numpy"] == metadata.version("numpy")
    assert versions["pillow"] == metadata.version("pillow")
    assert None not in versions.values()


def test_cores_are_those_this_process_may_use():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from edgetl import host; print(host.facts()['cores'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
