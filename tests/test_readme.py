"""What the README tells a newcomer to type works, and its tables are the committed figures."""

import json
import re
import shlex
from pathlib import Path

import pytest

from edgetl.cli.main import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    commands = re.findall(r"^make ([a-z]+)", blocks("")[0], flags=re.MULTILINE)
    assert commands == ["demo", "test"]
    assert set(commands) <= targets


@pytest.mark.slow
def test_the_workflow_and_the_device_app(source_run, new_digits_folder, tmp_path, monkeypatch, capsys):
    """The three commands, with a small network and small pictures in place of photos/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(new_digits_folder)
    commands = [
        shlex.split(line, comments=True) for line in re.findall(r"^edgetl .*", blocks("")[1], flags=re.MULTILINE)
    ]
    assert [c[1] for c in commands] == ["finetune", "export", "bench"]
    extra = {
        "finetune": [
            "--backbone", "small_cnn", "--weights", str(source_run / "checkpoint.safetensors"), "--epochs", "1",
            "--batch-size", "16",
        ],
        "export": ["--max-drop", "10%"],
        "bench": ["--seconds", "0.1", "--processes", "1"],
    }  # fmt: skip
    for command in commands:
        assert run(command[1:] + extra[command[1]]) == 0, capsys.readouterr().err
    (tmp_path / "bolt.jpg").write_bytes(next(new_digits_folder.rglob("*.png")).read_bytes())
    capsys.readouterr()
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    label, confidence = capsys.readouterr().out.split()
    assert label in "56789"
    assert 0 < float(confidence) <= 1


@pytest.mark.slow
def test_plans_ahead_of_time(bundle_path, tmp_path, monkeypatch, capsys):
    """The lines on TensorRT that need no GPU."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.edgetl").symlink_to(bundle_path)
    lines = re.findall(r"^edgetl .*", README, flags=re.MULTILINE)
    compile_line = next(line for line in lines if "--engine tensorrt-rtx" in line)
    inspect_line = next(line for line in lines if "inspect plans/" in line)
    assert run(shlex.split(compile_line, comments=True)[1:]) == 0, capsys.readouterr().err
    plan = next((tmp_path / "plans").glob("*int8*.json"))
    capsys.readouterr()
    assert (
        run([part.replace("plans/NAME.json", str(plan)) for part in shlex.split(inspect_line, comments=True)[1:]]) == 0
    )
    assert "for SM 86, 89" in capsys.readouterr().out
    assert run(["inspect", str(bundle_path), "--layers"]) == 0
    assert "Int8" in capsys.readouterr().out


def test_the_table_of_real_pictures_is_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "transfer.json").read_text())
    assert not result["quick"]
    table = README.split("<!-- transfer -->")[1].split("<!-- /transfer -->")[0]
    for check in result["checks"]:
        assert check["name"] in table


def commands_of(text):
    """Every edgetl bench of a page, as a shell would split it."""
    joined = re.sub(r"\n\s+(?=(--|edgetl))", " ", text)
    return [shlex.split(line.strip(), comments=True) for line in re.findall(r"edgetl bench [^\n]*", joined)]


def test_the_jobs_for_ci_are_yaml_and_their_options_exist():
    import yaml

    from edgetl.cli.main import cli

    page = (ROOT / "docs" / "ci.md").read_text()
    jobs = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)]
    assert len(jobs) == 4
    steps = jobs[0]["jobs"]["gate"]["steps"]
    assert steps[0]["with"]["fetch-depth"] == 0
    lines = [step["run"] for step in steps if "edgetl bench" in step.get("run", "")]
    lines += [line for job in jobs[1:3] for line in next(iter(job.values()))["script"] if "edgetl bench" in line]
    assert len(lines) == 3
    for line in lines:
        parsed = cli.commands["bench"].make_context("bench", shlex.split(line)[2:]).params
        assert parsed["bundles"] == ("models/parts.edgetl",)
        assert parsed["against"].endswith(":models/parts.edgetl")
        assert parsed["max_regression"] in (0.03, 0.05)


def test_the_lines_on_transfer_are_understood():
    from edgetl.cli.main import cli
    from edgetl.finetune import FinetuneConfig, open_recipe

    section = README.split("## Transfer learning")[1].split("\n## ")[0]
    pages = section + (ROOT / "docs" / "finetune.md").read_text()
    lines = re.findall(r"^edgetl (?:finetune|select) .*", pages, flags=re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        name, *arguments = shlex.split(line, comments=True)[1:]
        parsed = cli.commands[name].make_context(name, arguments).params
        if name == "finetune":
            fields = {f: parsed[f] for f in FinetuneConfig().to_dict()}
            FinetuneConfig(**fields)
            if parsed["recipe"] not in (None, "my-recipe.yaml"):
                open_recipe(parsed["recipe"])


def test_every_recipe_has_its_card():
    from edgetl.finetune import recipe_names

    overview = (ROOT / "models" / "README.md").read_text()
    for name in recipe_names():
        assert f"[{name}]({name}.md)" in overview
        card = (ROOT / "models" / f"{name}.md").read_text()
        assert f"--recipe {name}" in card
        assert "| starts from |" in card


def test_the_lines_on_measuring_are_understood():
    from edgetl.cli.main import cli

    lines = commands_of(README.split("## Measuring")[1].split("\n## ")[0])
    assert len(lines) >= 5
    for line in lines:
        arguments = line[2 : line.index("&&")] if "&&" in line else line[2:]
        assert cli.commands["bench"].make_context("bench", arguments).params["bundles"]
