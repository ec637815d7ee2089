"""Candidates are ranked by their features, timed in INT8, and what cannot be had is left out by name."""

import json
from pathlib import Path

import pytest
from fixtures_trained import Recorder

from edgetl.cli.main import run
from edgetl.errors import InputError
from edgetl.finetune import FinetuneConfig
from edgetl.selection import Candidate, Measured, Ranking, candidates_in, crossed, select

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranking(digits, source_run):
    """A network that was trained on these very digits, a random one, and one that does not exist."""
    weights = str(source_run / "checkpoint.safetensors")
    candidates = [
        Candidate("small_cnn", "none"),
        Candidate("small_cnn", weights),
        Candidate("small_cnn", weights, size=(16, 16)),
        Candidate("small_cnm"),
    ]
    recorder = Recorder()
    return select(digits, candidates, reporter=recorder, budget_ms=1000.0, seconds=0.1), recorder


def test_trained_features_come_first_and_small_inputs_are_faster(ranking):
    rows = {(r.candidate.weights == "none", r.candidate.size): r for r in ranking[0].rows}
    trained, random, small = rows[False, None], rows[True, None], rows[False, (16, 16)]
    assert ranking[0].rows[0] is trained
    assert trained.probe_top1 > 0.9
    assert trained.logme > random.logme
    assert small.latency_ms < trained.latency_ms
    assert trained.variant.startswith("int8-")
    assert trained.parameters == random.parameters > 200_000


def test_front_choice_and_what_was_left_out(ranking):
    found, recorder = ranking
    assert found.front[-1] is found.choice is found.rows[0]
    assert found.front[0].latency_ms == min(row.latency_ms for row in found.rows)
    assert found.left_out[0][0] == "small_cnm"
    assert any("small_cnm: left out: backbone" in note for note in recorder.notes)


def test_a_candidate_sees_the_pixels_that_it_will_be_trained_on(digits, monkeypatch):
    seen = []

    def features(network, items, spec, **_):
        seen.append(spec.decode)
        raise InputError("seen enough")

    monkeypatch.setattr("edgetl.selection.stage.compute_features", features)
    with pytest.raises(InputError, match="seen enough"):
        select(digits, [Candidate("small_cnn", "none")], reporter=Recorder())
    assert seen == [FinetuneConfig.decode]


def row(name, probe, ms):
    return Measured(Candidate(name), probe, 0.0, ms, "int8-x86", 1)


def test_a_budget_excludes_what_is_slower():
    rows = (row("a", 0.9, 9.0), row("b", 0.8, 4.0), row("c", 0.7, 5.0), row("d", 0.95, None))
    assert Ranking(rows, 5.0).choice is rows[1]
    assert Ranking(rows, 1.0).choice is None
    assert Ranking(rows, None).choice is rows[0]
    assert Ranking(rows, None).front == (rows[1], rows[0])


def test_candidates_come_from_a_file_and_are_crossed_with_sizes(tmp_path):
    path = tmp_path / "candidates.yaml"
    path.write_text("- {backbone: resnet18, weights: a b.pth, mean: [0.5, 0.5, 0.5]}\n- {backbone: mobilenet_v2}\n")
    found = crossed(candidates_in(path), (96, 128))
    assert [c.name for c in found] == [
        "resnet18=a b.pth at 96", "resnet18=a b.pth at 128", "mobilenet_v2 at 96", "mobilenet_v2 at 128",
    ]  # fmt: skip
    assert found[0].command("my photos") == (
        "edgetl finetune 'my photos' --backbone resnet18 --weights 'a b.pth' --size 96 --mean 0.5,0.5,0.5"
    )
    for text, message in (
        ("backbone: x", "must be a list"),
        ("- {weights: x}", "entry 1: must name a backbone"),
        ("- {backbone: x, sise: 3}", 'entry 1: unknown setting "sise"'),
        ("- {backbone: x, size: big}", "size is 'big', that is not of the right type"),
    ):
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            candidates_in(path)
        assert message in str(caught.value)


def test_the_command_prints_the_next_command_and_gates_on_the_budget(digits_folder, source_run, tmp_path, capsys):
    weights = source_run / "checkpoint.safetensors"
    options = ["--candidate", f"small_cnn={weights}", "--sizes", "16,32", "--seconds", "0.1"]
    out = tmp_path / "s.json"
    assert run(["select", str(digits_folder), *options, "--json", str(out)]) == 0
    told = json.loads(out.read_text())
    assert [c["size"] for c in told["candidates"]] in ([[32, 32], [16, 16]], [[16, 16], [32, 32]])
    said = " ".join(capsys.readouterr().err.split())
    assert f"next: edgetl finetune {digits_folder} --backbone small_cnn --weights {weights} --size" in said
    one = ["--candidate", f"small_cnn={weights}", "--sizes", "16", "--seconds", "0.1"]
    assert run(["select", str(digits_folder), *one, "--latency-budget", "0.001ms"]) == 1
    assert "no candidate is within 0.001 ms; the fastest takes" in capsys.readouterr().err
    assert run(["select", str(digits_folder), "--latency-budget", "5"]) == 2
    assert '"5" must be milliseconds, like 5ms' in capsys.readouterr().err
    assert run(["select", str(digits_folder), "--candidate", "resnet81", "--seconds", "0.1"]) == 2
    assert "none of the candidates can be used; resnet81: backbone" in capsys.readouterr().err
    assert not list(Path.cwd().glob("edgetl-select-*"))
