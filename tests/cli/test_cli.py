"""The commands, in-process: results, JSON, exit codes, and one line for whatever is wrong."""

import dataclasses
import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edgetl.bundle import open_bundle
from edgetl.cli.main import cli, run


def call(capsys, *arguments):
    """Runs a command; returns exit code, standard output, standard error."""
    code = run([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_help_of_every_command_names_its_options(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name in ("finetune", "export", "bench", "compare", "history", "predict", "inspect", "doctor", "demo"):
        assert name in out
        code, text, _ = call(capsys, name, "--help")
        assert code == 0
        assert "--json FILE|-" in text


@pytest.mark.parametrize("command", [(), ("bundle",)])
def test_help_shows_whole_command_lines(capsys, command):
    code, out, _ = call(capsys, *command, "--help")
    assert code == 0
    assert "\\b" not in out
    assert any(
        line.split()[:3] == ["edgetl", "bundle", "sign"] and "--key release.key" in line for line in out.splitlines()
    )


def test_help_is_fast():
    """`edgetl --help` costs what click costs: no numpy, no stage."""

    def fastest(*arguments):
        times = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    assert fastest("-m", "edgetl.cli.main", "--help") - fastest("-c", "pass") < 0.15


def test_help_loads_no_stage():
    code = "import sys; from edgetl.cli.main import run; run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for module in ("numpy", "torch", "PIL", "rich", "onnx", "edgetl.runtime", "edgetl.finetune"):
        assert f"'{module}'" not in done.stderr


def test_defaults_of_the_options_are_those_of_the_settings():
    from edgetl.bench import BenchConfig
    from edgetl.export import ExportConfig
    from edgetl.finetune import FinetuneConfig
    from edgetl.quantize import QuantizeConfig

    compared = 0
    for name, config in (
        ("finetune", FinetuneConfig()),
        ("export", ExportConfig()),
        ("export", QuantizeConfig()),
        ("bench", BenchConfig()),
    ):
        defaults = cli.commands[name].make_context(name, ["THING"]).params
        for field in dataclasses.fields(config):
            if field.name in defaults:
                assert defaults[field.name] == getattr(config, field.name), (name, field.name)
                compared += 1
    assert compared == len(dataclasses.fields(FinetuneConfig)) + 7 + 6 + 8


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_predict_prints_a_line_for_each_picture(capsys, tiny_bundle, picture):
    code, out, err = call(capsys, "predict", tiny_bundle, picture, picture.parent)
    assert code == 0
    assert len(out.splitlines()) == 2
    assert out.startswith(f"{picture}: ")
    assert "on cpu" in err


def test_predict_json_has_the_promised_form(capsys, tiny_bundle, picture):
    code, out, _ = call(capsys, "predict", tiny_bundle, picture, "--json", "-", "--top", "2")
    assert code == 0
    [entry] = json.loads(out)
    labels = open_bundle(tiny_bundle).spec.labels
    assert entry["path"] == str(picture)
    assert entry["label"] in labels
    assert entry["label"] == entry["top"][0]["label"]
    assert entry["confidence"] == entry["top"][0]["confidence"]
    assert len(entry["top"]) == 2
    assert entry["top"][0]["confidence"] >= entry["top"][1]["confidence"]


def test_predict_answers_for_the_rest_of_a_folder_and_says_what_it_could_not_read(capsys, tiny_bundle, picture):
    (picture.parent / "bad.png").write_text("no picture")
    code, out, err = call(capsys, "predict", tiny_bundle, picture.parent, "--json", picture.parent / "r.json")
    assert code == 2
    assert len(out.splitlines()) == len(json.loads((picture.parent / "r.json").read_text())) == 1
    assert err.strip().splitlines()[-1].startswith(f"edgetl: {picture.parent / 'bad.png'}: is not a picture")


def test_an_error_in_a_loaders_process_is_one_line_too(capsys, monkeypatch, tiny_bundle, picture):
    import edgetl.runtime
    from edgetl.errors import PictureError

    def broken(*_, **__):
        raise PictureError(
            "Caught PictureError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            "  File x\nedgetl.errors.PictureError: a.png: no such file\n"
        )

    monkeypatch.setattr(edgetl.runtime, "load", broken)
    code, _, err = call(capsys, "predict", tiny_bundle, picture)
    assert (code, err) == (2, "edgetl: a.png: no such file\n")


def test_json_goes_to_a_file_too(capsys, tiny_bundle, picture, tmp_path):
    code, out, _ = call(capsys, "predict", tiny_bundle, picture, "--json", tmp_path / "r.json")
    assert code == 0
    assert len(json.loads((tmp_path / "r.json").read_text())) == 1
    assert str(picture) in out


def test_inspect_verifies_a_bundle(capsys, tiny_bundle):
    code, out, _ = call(capsys, "inspect", tiny_bundle)
    assert code == 0
    assert "fp32" in out


def test_inspect_lists_a_data_set(capsys, digits_folder):
    code, out, _ = call(capsys, "inspect", digits_folder, "--json", "-")
    assert code == 0
    report = json.loads(out)
    assert report["classes"] == ["0", "1", "2", "3", "4"]
    assert report["pictures"] == 120 + 230
    assert report["bad"] == []


def test_inspect_lists_the_blocks_of_a_backbone(capsys):
    code, out, err = call(capsys, "inspect", "mobilenet_v3_small", "--blocks", "--json", "-")
    assert code == 0
    report = json.loads(out)
    assert len(report["blocks"]) == 13
    assert "squeeze-excite" in report["warnings"][0]
    assert "warning: " in err


def test_doctor_tells_what_is_here_and_how_to_add_the_rest(capsys):
    code, out, _ = call(capsys, "doctor", "--json", "-")
    assert code == 0
    report = json.loads(out)
    parts = {part["module"]: part for part in report["parts"]}
    assert parts["torch"]["installed"]
    assert not parts["tensorrt"]["installed"]
    assert parts["tensorrt"]["install"] == "pip install 'edgetl[tensorrt]'"
    assert report["host"]["cores"] >= 1
    code, out, _ = call(capsys, "doctor")
    assert "pip install 'edgetl[tensorrt]'" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "NOWHERE"], "NOWHERE: no such folder or table; expected root/{train,val}/class/picture"),
        (["finetune", "DATA", "--backbone", "mobilnet_v2", "--weights", "none"], "did you mean mobilenet_v2"),
        (["finetune", "DATA", "--strategy", "some"], "--strategy"),
        (["finetune", "DATA", "--head", "big", "--backbone", "small_cnn", "--weights", "none"], '--head is "big"'),
        (["finetune", "DATA", "--epochs", "0"], "--epochs is 0: it must be between 1 and"),
        (["finetune", "DATA", "--epochs", "ten"], "'ten' is not a valid integer"),
        (["finetune", "DATA", "--size", "big"], '"big" must be a number of pixels, like 224 or 192x256'),
        (["finetune", "DATA", "--mean", "a,b"], '"a,b" must be numbers with commas between'),
        (["finetune", "DATA", "--weights", "x.pth", "--backbone", "small_cnn"], "x.pth: no such file"),
        (["finetune", "DATA", "--config", "x.yaml"], "x.yaml: cannot be read"),
        (["finetune", "DATA", "--resume"], "is not a run of edgetl finetune"),
        (["finetune"], "Missing argument 'DATA'"),
        (["finetune", "DATA", "--epoch", "3"], "No such option"),
        (["export", "NOWHERE"], "is not a run of edgetl finetune"),
        (["export", "NOWHERE", "--max-drop", "1"], '"1" needs a number and a unit, like 1pt or 5%'),
        (["export", "NOWHERE", "--method", "best"], '--method is "best": it must be one of auto, max, percentile'),
        (["export", "NOWHERE", "--calib-images", "0"], "--calib-images is 0"),
        (["export", "NOWHERE.onnx"], "an .onnx file needs --spec spec.json"),
        (["export", "NOWHERE.onnx", "--with-original"], "--with-original goes with a run"),
        (["bench", "NOWHERE"], "NOWHERE: no such bundle; edgetl export makes one"),
        (["bench"], "Missing argument"),
        (["bench", "BUNDLE", "--variant", "int4"], 'has no variant "int4"; it has fp32'),
        (["bench", "BUNDLE", "--engine", "gpu"], 'engine "gpu" is unknown'),
        (["bench", "BUNDLE", "--processes", "0"], "--processes must be 1 to 100"),
        (["bench", "BUNDLE", "--fps", "0"], "--fps must be 0.1 to 1000 pictures a second"),
        (["bench", "BUNDLE", "--batch", "1,x"], '"1,x" must be numbers with commas between'),
        (["bench", "BUNDLE", "--batch", "0"], "--batch takes sizes of 1 to 4096"),
        (["bench", "BUNDLE", "--engine", "tensorrt"], "none of the variants asked for runs here: fp32"),
        (["bench", "BUNDLE", "--max-regression", "5%"], "--max-regression needs something to compare with"),
        (["bench", "BUNDLE", "--max-regression", "5"], '"5" needs a number and a unit'),
        (["bench", "BUNDLE", "--max-regression", "0%", "--against", "BUNDLE"], "--max-regression must be above 0 %"),
        (["bench", "BUNDLE", "--baseline", "NOWHERE", "--max-drop", "1pt"], "NOWHERE: cannot be read"),
        (["bench", "BUNDLE", "--baseline", "TEXT", "--max-drop", "1pt"], "TEXT: is not JSON"),
        (["bench", "BUNDLE", "--baseline", "TEXT"], "--baseline needs a limit"),
        (["bench", "BUNDLE", "--baseline", "TEXT", "--against", "BUNDLE"], "are two references: give one"),
        (["bench", "BUNDLE", "BUNDLE", "--against", "BUNDLE"], "--against compares one BUNDLE with its reference"),
        (["bench", "BUNDLE", "--against", "NOWHERE"], "NOWHERE: no such bundle"),
        (["bench", "BUNDLE", "--against", "HEAD:NOWHERE"], "neither a bundle here nor a git repository around"),
        (["bench", "BUNDLE", "--junit", "j.xml"], "give a limit"),
        (["bench", "BUNDLE", "--max-drop", "1pt"], "judge on pictures: give --data"),
        (["bench", "BUNDLE", "--min-recall", "bolt=95%"], "has no such class; it knows blue, green, red"),
        (["bench", "BUNDLE", "--variant", "int8-x86", "--max-drop", "1pt"], "add --variant fp32"),
        (["bench", "BUNDLE", "--against", "BUNDLE", "--engine", "cpu", "--engine", "auto"], "give --engine once"),
        (["bench", "BUNDLE", "--min-recall", "95%"], "must be a class and a rate, like scratch=95%"),
        (["bench", "BUNDLE", "--device", "orin"], "there is no boards.yaml here"),
        (["compare", "NOWHERE"], "NOWHERE: cannot be read"),
        (["history", "NOWHERE"], "NOWHERE: cannot be read"),
        (["bench", "BUNDLE=NOWHERE"], "NOWHERE: no such folder or table"),
        (["predict", "NOWHERE", "a.png"], "NOWHERE: no such bundle"),
        (["predict", "BUNDLE", "a.png"], "a.png: no such file"),
        (["predict", "BUNDLE", "EMPTY"], "EMPTY: holds no pictures"),
        (["predict", "BUNDLE", "TEXT"], "is not a picture that can be read"),
        (["predict", "BUNDLE", "a.png", "--engine", "npu"], 'engine "npu" is unknown'),
        (["inspect", "NOWHERE"], "no such bundle, run or folder, and as a backbone"),
        (["frobnicate"], "No such command"),
        (["finetune", "DATA", "--out", "TEXT"], "TEXT: is a file; --out names the run's folder"),
        (["finetune", "DATA", "--batchnorm", "off"], '--batchnorm is "off": it must be frozen or train'),
        (["export", "NOWHERE", "--out", "EMPTY"], "EMPTY: exists already"),
        (["export", "NOWHERE", "--out", "TEXT", "--force"], "TEXT: is no part of a bundle, --force would delete"),
        (["export", "NOWHERE", "--spec", "s.json"], "--spec describes an .onnx file"),
        (["demo", "--out", ".", "--force"], "is no part of a demo, --force would delete somebody's files"),
        (["bench", "BUNDLE", "--split", "some"], "'some' is not one of"),
        (["predict", "BUNDLE", "PICTURE", "--json", "TEXT/deep/r.json"], "cannot be written"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments, message, capsys, tmp_path, monkeypatch, tiny_bundle, digits_folder
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "TEXT").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "PICTURE.png")
    before = sorted(tmp_path.rglob("*"))
    names = {"DATA": str(digits_folder), "PICTURE": "PICTURE.png"}
    given = [names.get(a, a.replace("BUNDLE", str(tiny_bundle))) for a in arguments]
    code, _, err = call(capsys, *given)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith(("edgetl: ", "Error: "))
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


def test_an_own_defect_keeps_its_traceback(monkeypatch, tiny_bundle, picture):
    import edgetl.runtime

    def broken(*_, **__):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(edgetl.runtime, "load", broken)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        run(["predict", str(tiny_bundle), str(picture)])


@pytest.mark.slow
def test_finetune_export_bench_by_command(capsys, new_digits_folder, source_run, tmp_path):
    weights = source_run / "checkpoint.safetensors"
    (tmp_path / "settings.yaml").write_text("epochs: 7\nbatch_size: 16\naugment: light\n")
    code, out, err = call(
        capsys, "finetune", new_digits_folder, "--backbone", "small_cnn", "--weights", weights, "--epochs", "2",
        "--config", tmp_path / "settings.yaml", "--out", tmp_path / "run", "--json", tmp_path / "f.json",
    )  # fmt: skip
    assert code == 0, err
    assert "val top-1" in out
    assert "5 classes, 60 train, 219 val" in err
    assert "left in the file" in err
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["val"]["pictures"] == 219
    history = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert len(history) == 1 + 1 + 2 + 1  # options typed win over the file

    bundle = tmp_path / "b.edgetl"
    code, out, err = call(
        capsys, "export", tmp_path / "run", "--int8", "--with-original", "--max-drop", "10%", "--out", bundle
    )
    assert code == 0, err
    assert "int8-tensorrt" in out
    assert (tmp_path / "b.original.edgetl").is_dir()

    code, out, err = call(
        capsys, "bench", f"{bundle}={new_digits_folder}", tmp_path / "b.original.edgetl", "--seconds", "0.1",
        "--processes", "2", "--variant", "fp32", "--variant", "int8-x86", "--json", "-",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert result["format_version"] == 2
    assert result["host"]["cores"] >= 1
    assert set(result["conditions"]) == {"valid", "invalid", "warnings", "periods"}
    assert len(result["conditions"]["periods"]) == 2
    assert set(result["results"][0]["stages_ms"]) == {"decode", "preprocess", "infer", "postprocess"}
    assert "interval" in result["results"][1]["comparison"]["text"]
    assert [(r["variant"], r["engine"]) for r in result["results"]] == [("fp32", "cpu"), ("int8-x86", "cpu")] * 2
    first = result["results"][0]
    assert set(first["accuracy"]) == {"top1", "macro_f1", "flip_rate"}
    assert first["accuracy"]["top1"] == pytest.approx(found["val"]["top1"], abs=0.006)
    assert result["results"][2]["accuracy"]["top1"] is None
    assert len(first["samples_ns"]) == 2
    assert all(len(process) >= 20 for process in first["samples_ns"])
    flat = np.concatenate(first["samples_ns"]) / 1e6
    assert first["latency_ms"]["p50"] == pytest.approx(np.percentile(flat, 50))
    assert first["latency_ms"]["p50"] <= first["latency_ms"]["p90"] <= first["latency_ms"]["p99"]
    assert first["throughput_ips"] == pytest.approx(1e3 / flat.mean())
    assert first["latency_ratio"] == 1.0
    assert first["bytes"] == (bundle / "model.fp32.onnx").stat().st_size
    assert 20e6 < first["cold_start"]["peak_bytes"] < 400e6
    assert first["cold_start"]["import_ms"] > 20  # numpy and Pillow are in it
    assert result["settings"]["processes"] == 2
    assert [d["split"] for d in result["settings"]["data"]] == ["val"]
    assert "is not, or no longer" not in err

    code, out, err = call(
        capsys, "bench", bundle, bundle, "--data", new_digits_folder / "val", "--seconds", "0.1", "--processes", "1",
        "--variant", "fp32", "--json", tmp_path / "twice.json",
    )  # fmt: skip
    assert code == 0, err
    twice = json.loads((tmp_path / "twice.json").read_text())
    one, other = twice["results"]
    assert one["samples_ns"] != other["samples_ns"]
    assert one["latency_ratio"] == 1.0
    assert 0.5 < other["latency_ratio"] < 2
    assert twice["settings"]["data"][0]["split"] == "all"  # a folder val/ beside train/ is a split already
    assert one["accuracy"] == first["accuracy"]

    code, _, err = call(capsys, "export", tmp_path / "run", "--out", bundle)
    assert (code, "exists already" in err) == (2, True)
    code, out, _ = call(capsys, "inspect", tmp_path / "run")
    assert code == 0
    assert "macro F1" in out


@pytest.mark.slow
def test_the_demo_runs_and_shows_what_transfer_is_worth(capsys, tmp_path):
    code, out, err = call(capsys, "demo", "--out", tmp_path / "demo", "--json", tmp_path / "d.json")
    assert code == 0, err
    entries = json.loads((tmp_path / "d.json").read_text())["results"]
    top1 = {(e["bundle"], e["variant"]): e["accuracy"]["top1"] for e in entries}
    assert {name for name, _ in top1} == {"original", "transferred", "from-scratch"}
    assert top1["transferred", "fp32"] > top1["from-scratch", "fp32"]
    assert "Transfer was worth +" in out
    code, _, err = call(capsys, "demo", "--out", tmp_path / "demo")
    assert (code, "exists already" in err) == (2, True)


def test_progress_of_unknown_length_counts(capsys, monkeypatch):
    from edgetl.cli import display

    monkeypatch.setattr(display, "_PLAIN_EVERY_S", -1.0)
    with display.Display(json_to_stdout=False) as shown:
        for done in range(3):
            shown.progress("trials", done, 0)
        shown.progress("pictures", 1, 8)
        shown.progress("pictures", 2, 8)
    assert capsys.readouterr().err.splitlines()[-2:] == ["trials: 2", "pictures: 2/8"]
