"""What a report needs, where it is written, and what the commands do with it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from contextlib import contextmanager

import pytest
from PIL import Image
from report_inputs import decisions, rich_result

from edgetl.bundle import open_bundle
from edgetl.cli.main import run
from edgetl.errors import InputError, MissingExtraError
from edgetl.finetune.run_folder import RunFolder
from edgetl.report import bench_report, check_report, write_report


@pytest.fixture
def without(monkeypatch):
    """Makes a package look as if it were not installed, within a block."""

    @contextmanager
    def hidden(package):
        with monkeypatch.context() as patch:
            for name in [module for module in sys.modules if module.split(".")[0] == package]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, package, None)  # what importlib takes for "is not there"
            yield

    return hidden


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_names_the_line_that_installs_it(without, package):
    with (
        without(package),
        pytest.raises(MissingExtraError, match=rf"{package} is not installed.*pip install 'edgetl\[report\]'"),
    ):
        check_report()


def test_a_place_that_cannot_be_written_is_said_early(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    check_report(tmp_path / "new" / "deep" / "report.html")
    with pytest.raises(InputError, match="is a folder; --html names the file to write"):
        check_report(tmp_path)
    with pytest.raises(InputError, match=r"file is no folder that can be written to"):
        check_report(file / "report.html")
    assert not (tmp_path / "new").exists()


def test_a_page_is_written_whole(tmp_path):
    target = tmp_path / "new" / "report.html"
    write_report(target, bench_report([rich_result()]))
    text = target.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]


def test_importing_reports_draws_nothing():
    code = (
        "import sys, edgetl.report; print([m for m in ('matplotlib', 'jinja2', 'torch', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_bench_writes_the_page_even_if_the_gate_fails(tiny_bundle, tmp_path, capsys):
    page, told = tmp_path / "bench.html", tmp_path / "bench.json"
    for label, shade in itertools.product(("blue", "green", "red"), (0, 10)):  # all of them dark, which is blue
        path = tmp_path / "photos" / "val" / label / f"{label}{shade}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (shade, len(label), 0)).save(path)
    gate = ["--min-recall", "red=100%", "--data", str(tmp_path / "photos" / "val"), "--split", "all"]
    quick = ["--seconds", "0.05", "--processes", "1"]
    assert run(["bench", str(tiny_bundle), *quick, "--html", str(page), "--json", str(told), *gate]) == 1

    html = page.read_text(encoding="utf-8")
    assert json.loads(told.read_text())["results"][1]["comparison"]["text"] in html
    assert "Gate failed" in html


@pytest.mark.parametrize("command", [["bench", "{bundle}"], ["export", "{bundle}"]])
def test_commands_say_before_they_work_that_a_page_cannot_be_written(command, tiny_bundle, tmp_path, capsys):
    arguments = [part.format(bundle=tiny_bundle) for part in command]
    assert run([*arguments, "--html", str(tmp_path)]) == 2
    assert "is a folder; --html names the file to write" in capsys.readouterr().err


def test_bench_without_the_extra_names_the_install_line(tiny_bundle, tmp_path, without, capsys):
    with without("jinja2"):
        assert run(["bench", str(tiny_bundle), "--html", str(tmp_path / "r.html")]) == 2
    assert "pip install 'edgetl[report]'" in capsys.readouterr().err


@pytest.fixture
def few_pictures(tmp_path):
    """Two colours, which a network of nothing learns."""
    for split, label, i in itertools.product(("train", "val"), ("blue", "red"), range(3)):
        path = tmp_path / "photos" / split / label / f"{split}-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = 150 + 20 * i + 7 * (split == "val")
        Image.new("RGB", (16, 16), (shade, 0, 0) if label == "red" else (0, 0, shade)).save(path)
    return tmp_path / "photos"


@pytest.mark.slow
def test_finetune_writes_its_report_where_the_extra_is_installed(few_pictures, tmp_path, without, capsys):
    settings = ["--backbone", "small_cnn", "--weights", "none", "--strategy", "full", "--epochs", "1", "--size", "16"]
    command = ["finetune", str(few_pictures), "--out", str(tmp_path / "run"), *settings]
    with without("matplotlib"):
        assert run(command) == 0
    err = capsys.readouterr().err
    assert "report.html was not written: matplotlib is not installed" in err
    assert "pip install 'edgetl[report]'" in err
    assert (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()

    assert run([*command, "--force"]) == 0
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "1 epoch<" in html
    assert "small_cnn" in html
    RunFolder(tmp_path / "run").check_free(resume=False, force=True)  # a report is part of a run


@pytest.mark.slow
def test_export_names_flipped_pictures_and_its_page_shows_them(
    transfer_run, bundle_path, new_digits, tmp_path, capsys, monkeypatch
):
    items = new_digits.split("val")
    flipped, _ = decisions(("5", "6", "7", "8", "9"), noise=2.0, paths=[items[0].path])

    def exported(*_, on_fidelity, **__):
        on_fidelity({"int8-x86": flipped})
        return open_bundle(bundle_path)

    monkeypatch.setattr("edgetl.export.export_run", exported)
    page = tmp_path / "export.html"
    assert run(["export", str(transfer_run), "--out", str(tmp_path / "x.edgetl"), "--html", str(page)]) == 0

    out, html = capsys.readouterr().out, page.read_text(encoding="utf-8")
    inside = items[0].path.relative_to(new_digits.root).as_posix()
    assert f"  {inside}: {flipped['worst_flips'][0]['reference']} (" in out
    assert str(new_digits.root) not in out
    assert "data:image/jpeg" in html
    assert f'title="{items[0].path}"' in html
