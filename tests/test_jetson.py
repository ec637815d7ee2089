"""A board's state, read from trees of files as NVIDIA's systems have them, and what doctor makes of it."""

import json
import os
from importlib.machinery import ModuleSpec

import pytest

from edgetl.cli import doctor as doctor_command
from edgetl.cli.main import run
from edgetl.jetson import jetson, l4t_release

ORIN = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37\n"


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def board(tmp_path):
    gpu = "sys/class/devfreq/17000000.gpu"
    return tree(
        tmp_path,
        {
            "etc/nv_tegra_release": ORIN,
            f"{gpu}/min_freq": "306000000\n",
            f"{gpu}/cur_freq": "306000000\n",
            f"{gpu}/max_freq": "918000000\n",
            "sys/class/devfreq/31b0000.emc/cur_freq": "1\n",
            "dev/nvhost-ctrl-nvdla0": "",
            "dev/nvhost-ctrl-nvdla1": "",
            "usr/lib/python3.10/dist-packages/tensorrt/__init__.py": "",
        },
    )


@pytest.fixture
def nvpmodel(tmp_path, monkeypatch):
    """Stands for NVIDIA's tool; its words are those of a Jetson Orin NX."""

    def says(text):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "nvpmodel").write_text(f"#!/bin/sh\nprintf '%s' '{text}'\n")
        (folder / "nvpmodel").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return says


def test_a_board_that_works_at_half_speed(board, nvpmodel):
    nvpmodel("NV Power Mode: 15W\n2\n")
    found = jetson(board)
    assert (found.l4t, found.jetpack, found.power_mode) == ("36.4.3", "6.2", "15W")
    assert (found.gpu_mhz, found.clocks_locked, found.dla_cores) == ((306, 918), False, 2)
    assert found.system_tensorrt == str(board / "usr/lib/python3.10/dist-packages/tensorrt")
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("major", "revision", "jetpack"),
    [
        (35, "4.1", "5"), (36, "3.0", "6.0"), (36, "4.0", "6.1"), (36, "4.7", "6.2.1"), (36, "40.1", None),
        (38, "2.1", "7.0"), (39, "2.1", "7.2.1"), (51, "1.0", None),
    ],
)  # fmt: skip
def test_releases(tmp_path, major, revision, jetpack):
    tree(tmp_path, {"etc/nv_tegra_release": f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic\n"})
    assert jetson(tmp_path).jetpack == jetpack


@pytest.mark.parametrize("text", ["", "something else\n"])
def test_a_release_file_of_another_kind(tmp_path, text):
    tree(tmp_path, {"etc/nv_tegra_release": text})
    assert l4t_release(tmp_path) == (text.strip() or None)
    assert jetson(tmp_path / "elsewhere") is None


def examined(board, monkeypatch, capsys):
    monkeypatch.setattr("edgetl.jetson.jetson", lambda: jetson(board))
    assert run(["doctor", "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_doctor_says_what_is_wrong_with_a_board(board, nvpmodel, monkeypatch, capsys):
    nvpmodel("NV Power Mode: 15W\n2\n")
    report = examined(board, monkeypatch, capsys)
    told = " | ".join(report["problems"])
    assert "the GPU cannot be used: " in told
    assert "this environment does not see it: make it again by python3 -m venv --system-site-packages" in told
    remarks = " | ".join(report["remarks"])
    assert "power mode 15W is not the fastest" in remarks
    assert "sudo jetson_clocks holds it" in remarks
    assert report["jetson"]["dla_cores"] == 2
    assert report["gpu"] is None


def test_doctor_is_content_with_clocks_that_are_held(board, nvpmodel, monkeypatch, capsys):
    nvpmodel("NV Power Mode: MAXN_SUPER\n0\n")
    tree(board, {f"sys/class/devfreq/17000000.gpu/{name}_freq": "918000000\n" for name in ("min", "cur")})
    assert examined(board, monkeypatch, capsys)["remarks"] == []


def test_doctor_says_what_else_can_be_wrong():
    def problems(board, origin):
        spec = None if origin is None else ModuleSpec("tensorrt", None, origin=origin)
        return doctor_command._problems_of(board, spec)

    system = "/usr/lib/python3.10/dist-packages/tensorrt"
    board = jetson_of("36.4.3", "6.2", system)
    assert problems(board, f"{system}/__init__.py") == []  # Debian's package has a dist-info as pip's has
    assert "is not JetPack's: pip uninstall -y tensorrt" in problems(board, "/venv/tensorrt/__init__.py")[0]
    assert problems(jetson_of("unknown", None, None), "/usr/local/tensorrt/__init__.py") == []  # an image's own
    old = problems(jetson_of("35.4.1", "5", system), f"{system}/__init__.py")
    assert "JetPack 5 brings TensorRT 8, edgetl needs 10.3" in old[0]
    missing = problems(jetson_of("36.4.3", "6.2", None), None)
    assert missing == ["TensorRT is not installed: sudo apt-get install python3-libnvinfer"]


def test_a_container_knows_the_board_by_its_device_tree(tmp_path):
    assert jetson(tmp_path) is None
    tree(tmp_path, {"proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0"})
    assert (jetson(tmp_path).l4t, jetson(tmp_path).jetpack) == ("unknown", None)


def jetson_of(l4t, jetpack, system_tensorrt):
    from edgetl.jetson import Jetson

    return Jetson(l4t, jetpack, None, None, None, 0, system_tensorrt)


def test_doctor_looks_at_the_place_of_plans(tmp_path, monkeypatch, capsys):
    cache = tmp_path / "plans"
    monkeypatch.setenv("EDGETL_CACHE", str(cache))
    cache.mkdir(mode=0o700)
    (cache / "a.plan").write_bytes(b"12345")
    assert run(["doctor", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["cache"] == {
        "path": str(cache), "plans": 1, "bytes": 5, "problem": None,
    }  # fmt: skip
    cache.chmod(0o777)
    assert run(["doctor"]) == 0
    assert run(["doctor", "--check"]) == 1
    assert "others can write to it, and plans are native code: chmod 700" in capsys.readouterr().err
