"""What the structure promises, proven on the running code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNWANTED = ("torch", "torchvision", "lightning", "timm", "onnx", "onnxscript", "safetensors", "sklearn")


@pytest.mark.parametrize(
    "code",
    [
        "import edgetl; c = edgetl.load({bundle!r}); c({picture!r}); c.close()",
        "import edgetl.bench, edgetl.dataset, edgetl.bundle, edgetl.host, edgetl.metrics, edgetl.artifacts",
        "from edgetl.cli.main import run; assert run(['predict', {bundle!r}, {picture!r}]) == 0",
        "from edgetl.cli.main import run; assert run(['bench', {bundle!r}, '--seconds', '0.05']) == 0",
    ],
)
def test_device_code_never_loads_the_training_stack(code, tiny_bundle, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 90, 10)).save(tmp_path / "p.png")
    code = code.format(bundle=str(tiny_bundle), picture=str(tmp_path / "p.png"))
    check = f"import sys\n{code}\nprint('LOADED', [m for m in {UNWANTED!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_a_program_on_the_cpu_imports_nothing_for_gpus(tiny_bundle):
    code = f"import edgetl, sys; edgetl.load({str(tiny_bundle)!r}, engine='cpu').close(); "
    code += "print([m for m in sys.modules if m.startswith(('edgetl.compile', 'edgetl.gpu', 'cuda', 'tensorrt'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_benchmark_is_run_by_a_test():
    tests = "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    scripts = {script.name: script.read_text() for script in (ROOT / "benchmarks").glob("*.py")}
    tested = {name for name in scripts if f'"{name}"' in tests}
    started = {name for name in scripts if any(f'"{name}"' in scripts[starter] for starter in tested)}
    shared = {name for name in scripts if any(f"from {name[:-3]} import" in scripts[user] for user in tested)}
    assert set(scripts) == tested | started | shared, "a script in benchmarks/ is run by no test"


def test_no_module_is_named_like_one_of_the_standard_library():
    names = {p.stem for p in (ROOT / "edgetl").rglob("*.py") if p.stem not in ("__init__", "__main__")}
    allowed = {"inspect", "select"}  # commands; imported by their full path alone
    assert names & set(sys.stdlib_module_names) <= allowed


def test_the_version_is_the_same_everywhere():
    import edgetl

    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{edgetl.__version__}"' in project
    assert f"## {edgetl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_what_the_project_asks_for():
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    project = (ROOT / "pyproject.toml").read_text()
    wanted = {w.lower() for w in re.findall(r'"([A-Za-z][A-Za-z0-9_.-]*)>=', project)} - {
        "hatchling", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "pip",
        "paramiko", "cryptography",  # of parts to come: nothing of them has been tested
    }  # fmt: skip
    assert {name.replace("_", "-") for name in wanted} <= {name.replace("_", "-") for name in pinned}
