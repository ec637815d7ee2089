"""Every script in benchmarks/ runs; its full figures are committed, not made here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
needs_kit = pytest.mark.skipif(
    "EDGETL_KIT" not in os.environ, reason="EDGETL_KIT names no folder of weights and pictures"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        pytest.param("transfer.py", marks=[pytest.mark.kit, needs_kit]),
        pytest.param("ptq.py", marks=[pytest.mark.kit, needs_kit]),
        pytest.param("finetune.py", marks=[pytest.mark.kit, needs_kit]),
        pytest.param("zoo.py", marks=[pytest.mark.kit, needs_kit]),
        pytest.param("runtime.py", marks=[pytest.mark.kit, needs_kit]),
        pytest.param("learn.py", marks=[pytest.mark.kit, needs_kit]),
        "fuzz.py",
        "gate.py",
    ],
)
def test_the_script_runs_and_writes_checks(script, tmp_path):
    out = tmp_path / "r.json"
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(out.read_text())
    assert result["format_version"] == 1
    assert result["quick"]
    assert result["host"]["cpu"]
    assert result["rows"]
    assert all({"name", "value", "limit", "ok"} == set(check) for check in result["checks"])


@pytest.mark.parametrize("result", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda p: p.name)
def test_committed_results_are_full_and_say_what_they_missed(result):
    found = json.loads(result.read_text())
    assert not found["quick"]
    assert found["checks"]
    table = (BENCHMARKS / "README.md").read_text()
    for check in found["checks"]:
        [line] = [line for line in table.splitlines() if line.startswith(f"| {check['name']} |")]
        assert line.endswith("| holds |" if check["ok"] else "| MISSED |")


def test_the_table_of_results_is_generated_from_them():
    command = [sys.executable, str(BENCHMARKS / "tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
