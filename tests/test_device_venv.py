"""What a device installs, by the very line of Dockerfile.jetson, in a fresh environment: no torch, the same answers."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import dockerfile
import numpy as np
import pytest
import torch
from PIL import Image

from edgetl.bundle import open_bundle
from edgetl.dataset import Item
from edgetl.finetune.data import evaluation_loader

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

SCRIPT = """
import hashlib, importlib.util, json, sys
import edgetl
from edgetl.bundle import open_bundle
from edgetl.preprocess import preprocess
bundle, *paths = sys.argv[1:]
spec = open_bundle(bundle).spec
tensors = {p: hashlib.sha256(preprocess(p, spec.preprocess).tobytes()).hexdigest() for p in paths}
with edgetl.load(bundle) as classify:
    labels = {p: [classify(p).label, classify(p).scores.tolist()] for p in paths}
unwanted = ("torch", "torchvision", "lightning", "onnx", "timm", "sklearn")
absent = [m for m in unwanted if importlib.util.find_spec(m) is None]
print(json.dumps({"tensors": tensors, "labels": labels, "absent": absent, "variant": classify.variant}))
"""


@pytest.fixture(scope="module")
def device_python(tmp_path_factory):
    """An environment made as the image makes it, but that it sees nothing of the system's packages."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    command = dockerfile.pip_line().replace("/opt/edgetl/", f"{folder}/").replace("/opt/src", str(ROOT))
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def odd_pictures(tmp_path_factory):
    """One picture in every form that decoders disagree about."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "rotated.jpg", exif=exif, quality=90)
    photo.convert("CMYK").save(folder / "cmyk.jpg", quality=90)
    photo.quantize(32).save(folder / "palette.png")
    photo.convert("L").save(folder / "grey.jpg")
    deep = np.asarray(photo.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    photo.save(folder / "plain.jpg", quality=75)
    photo.convert("RGBA").save(folder / "alpha.png")
    return sorted(folder.iterdir())


def run_on_device(python, bundle, pictures):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), "-c", SCRIPT, str(bundle), *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_validation_and_device_feed_the_network_the_same_bytes(device_python, bundle_path, odd_pictures):
    found = run_on_device(device_python, bundle_path, odd_pictures)
    assert found["absent"] == ["torch", "torchvision", "lightning", "onnx", "timm", "sklearn"]
    spec = open_bundle(bundle_path).spec
    items = [Item(path, 0, "val", "") for path in odd_pictures]
    fed = torch.cat([x for x, _ in evaluation_loader(items, spec.preprocess, batch_size=4, workers=0)]).numpy()
    ours = {str(p): hashlib.sha256(a.tobytes()).hexdigest() for p, a in zip(odd_pictures, fed, strict=True)}
    assert found["tensors"] == ours
    assert len(set(ours.values())) == len(odd_pictures)


def test_the_device_answers_as_the_workstation_does(device_python, bundle_path, new_digits):
    import edgetl

    pictures = [item.path for item in new_digits.split("val")[::20]]
    found = run_on_device(device_python, bundle_path, pictures)
    with edgetl.load(bundle_path) as classify:
        assert classify.variant == found["variant"]
        for path in pictures:
            answer = classify(path)
            assert found["labels"][str(path)][0] == answer.label
            np.testing.assert_allclose(found["labels"][str(path)][1], answer.scores, atol=1e-5)


def test_the_command_says_what_is_missing_instead_of_failing(device_python, bundle_path, tmp_path):
    edgetl = device_python.with_name("edgetl")
    done = subprocess.run([str(edgetl), "finetune", "digits"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "edgetl: torch is not installed, and this step needs it: pip install 'edgetl[train]'"
    )
    done = subprocess.run([str(edgetl), "export", "x.onnx"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'edgetl[" in done.stderr
    done = subprocess.run([str(edgetl), "doctor"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert "pip install 'edgetl[train]'" in done.stdout


def test_the_example_app_answers_every_picture_and_ends_when_told(device_python, bundle_path, odd_pictures, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"no picture")
    for path in odd_pictures:
        (folder / path.name).write_bytes(path.read_bytes())
    command = [str(device_python), str(ROOT / "examples" / "device_app.py"), str(bundle_path), str(folder)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([*command, "--once"], capture_output=True, text=True, env=environment, cwd="/", timeout=60)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert {answer["picture"] for answer in answers} == {path.name for path in odd_pictures}
    assert set(answers[0]) == {"picture", "label", "confidence"}
    assert "on cpu: " in done.stderr
    assert "broken.jpg" in done.stderr
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        process.stdout.readline()
        (folder / ".late.tmp").write_bytes(odd_pictures[0].read_bytes())
        (folder / ".late.tmp").rename(folder / "late.png")
        assert any("late.png" in line for line in iter(process.stdout.readline, ""))
        process.terminate()
        assert process.wait(timeout=20) == 0
    wrong = subprocess.run([*command, "--engine", "tensorrt"], capture_output=True, text=True, env=environment)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert len(wrong.stderr.splitlines()) == 1
    gone = [*command[:-1], str(tmp_path / "nowhere")]
    wrong = subprocess.run(gone, capture_output=True, text=True, env=environment)
    assert wrong.returncode == 2
    assert wrong.stderr.endswith("nowhere: cannot be read (No such file or directory)\n")


def wanted_by(name):
    """Returns the requirements that pyproject.toml lists under a name."""
    line = re.search(rf"^{name} = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return re.findall(r'"([^"]+)"', line[1])


@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_constraints_for_jetson_resolve_for_its_python_and_processor(tmp_path, python):
    """JetPack 6 and 7 on aarch64. Nothing is installed, pip only has to find every wheel."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 34)]
    report = tmp_path / "report.json"
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report),
        "--target", str(tmp_path / "none"), "--python-version", python, "--implementation", "cp", "--only-binary=:all:",
        "--platform=manylinux2014_aarch64", *platforms, "-c", str(ROOT / "constraints-jetson.txt"),
        *wanted_by("dependencies"), *wanted_by("cpu"), *wanted_by("jetson"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    chosen = {
        i["metadata"]["name"].lower(): i["metadata"]["version"] for i in json.loads(report.read_text())["install"]
    }
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints-jetson.txt").read_text().lower().splitlines() if "==" in line
    )
    assert chosen == pinned  # every package is pinned, none is superfluous
