"""Strategies, what they leave alone, and what a run's folder holds."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from fixtures_trained import Recorder
from safetensors.torch import load_file, save_file

from edgetl.errors import CheckpointError, DatasetError, EdgetlError, InputError, WeightsError
from edgetl.finetune import FinetuneConfig, finetune, open_run

pytestmark = pytest.mark.slow


def history(run):
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def tensors(run):
    return load_file(run / "checkpoint.safetensors")


def test_a_run_holds_all_it_promises(transfer_run, new_digits):
    names = {p.name for p in transfer_run.iterdir()}
    assert names == {
        "checkpoint.safetensors", "source.safetensors", "spec.json", "config.yaml", "history.csv", "metrics.json",
        "last.ckpt", "stability.csv",
    }  # fmt: skip
    metrics = json.loads((transfer_run / "metrics.json").read_text())
    val = metrics["val"]
    assert val["pictures"] == len(new_digits.split("val"))
    assert val["top1"] > 0.6  # five classes: chance is 0.2
    assert np.sum(val["confusion_matrix"]) == val["pictures"]
    assert np.trace(val["confusion_matrix"]) / val["pictures"] == pytest.approx(val["top1"])
    assert {"macro_precision", "macro_recall", "macro_f1", "per_class"} <= set(val)
    config = yaml.safe_load((transfer_run / "config.yaml").read_text())
    assert config["strategy"] == "lp-ft"
    assert config["data"]["digest"] == new_digits.digest


def test_history_has_a_row_for_each_epoch_of_both_stages(transfer_run):
    rows = history(transfer_run)
    assert [r["stage"] for r in rows] == ["probe"] + ["tune"] * 3 + ["final"]
    assert [int(r["epoch"]) for r in rows[-4:]] == [1, 2, 3, 3]
    last = json.loads((transfer_run / "metrics.json").read_text())
    assert float(rows[-1]["val_top1"]) == pytest.approx(last["val"]["top1"], abs=1e-6)
    assert last["kept_row"] == 4


def test_the_probe_before_tuning_is_solved_and_an_mlp_s_is_trained(transfer_run, new_digits, transfer_config, tmp_path):
    probe = history(transfer_run)[0]
    assert probe["lr"] == ""
    assert 0.5 < float(probe["val_top1"]) <= 1
    assert 0 < float(probe["train_loss"]) < 1.6  # of pictures it did not see; chance is log 5
    assert float(probe["train_top1"]) < 1
    config = dataclasses.replace(transfer_config, head="mlp:16", epochs=2)
    finetune(new_digits, config, tmp_path / "run", reporter=Recorder())
    assert [row["stage"] for row in history(tmp_path / "run")] == ["probe"] * 10 + ["tune"] * 2 + ["final"]
    assert float(history(tmp_path / "run")[-1]["val_top1"]) > 0.5


def test_where_normalizations_have_seen_nothing_the_probe_is_trained(digits, tmp_path):
    """Their features are others as soon as they are tuned: a head that was solved for on them would mislead."""
    config = FinetuneConfig(backbone="small_cnn", weights="none", epochs=2, batch_size=16, size=(16, 16))
    finetune(digits, config, tmp_path / "run", reporter=Recorder())
    assert [row["stage"] for row in history(tmp_path / "run")] == ["probe"] * 10 + ["tune"] * 2 + ["final"]


def test_a_tuning_that_diverges_at_once_leaves_a_probe_that_is_sure(new_digits, transfer_config, tmp_path):
    config = dataclasses.replace(transfer_config, lr=99.0, weight_decay=10.0, max_gradient_norm=0.0)
    finetune(new_digits, config, tmp_path / "run", reporter=Recorder())
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    probe = history(tmp_path / "run")[0]
    assert metrics["kept_row"] == 1
    assert metrics["val"]["top1"] == pytest.approx(float(probe["val_top1"]), abs=0.005)
    assert metrics["val"]["ece"] < 0.2  # a quiet head gives every class a fifth


def test_features_that_are_not_finite_are_said(new_digits, transfer_config, source_run, tmp_path):
    damaged = tensors(source_run)
    next(tensor for tensor in damaged.values() if tensor.ndim == 4)[0] = np.nan
    save_file(damaged, tmp_path / "nan.safetensors")
    config = dataclasses.replace(transfer_config, weights=str(tmp_path / "nan.safetensors"))
    with pytest.raises(InputError, match="features are not finite: its weights hold NaN"):
        finetune(new_digits, config, tmp_path / "run", reporter=Recorder())
    assert not (tmp_path / "run").exists()


def test_open_run_gives_the_checkpoint_and_refuses_a_damaged_one(transfer_run, tmp_path):
    checkpoint, source = open_run(transfer_run)
    assert checkpoint.spec.labels == ("5", "6", "7", "8", "9")
    assert source.name.endswith("new-digits")
    damaged = tmp_path / "run"
    damaged.mkdir()
    for path in transfer_run.iterdir():
        data = bytearray(path.read_bytes())
        if path.name == "checkpoint.safetensors":
            data[-1] ^= 1
        (damaged / path.name).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: is not the file this run wrote"):
        open_run(damaged)
    (damaged / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match="is not complete; go on with"):
        open_run(damaged)
    with pytest.raises(CheckpointError, match="is not a run of edgetl finetune"):
        open_run(tmp_path)


def test_probe_trains_the_head_alone_and_computes_features_once(
    new_digits, transfer_config, source_run, tmp_path, recorder
):
    config = dataclasses.replace(transfer_config, strategy="probe", size=(28, 28), epochs=6)
    finetune(new_digits, config, tmp_path / "a", reporter=recorder)
    again = type(recorder)()
    finetune(new_digits, config, tmp_path / "b", reporter=again)
    before, after = tensors(source_run), tensors(tmp_path / "a")
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("backbone."))
    steps = [len([s for s in r.stages if s[0] == "features of train"]) for r in (recorder, again)]
    assert steps[0] > 1
    assert steps[1] == 1  # found in the cache
    assert history(tmp_path / "a") == history(tmp_path / "b")
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["val"]["top1"] > 0.5


def _is_statistic(name):
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize("batchnorm", ["frozen", "train"])
def test_last_n_leaves_lower_blocks_and_their_statistics_untouched(
    batchnorm, new_digits, transfer_config, source_run, tmp_path, recorder
):
    config = dataclasses.replace(transfer_config, strategy="last:2", epochs=1, batchnorm=batchnorm)
    finetune(new_digits, config, tmp_path / "run", reporter=recorder)
    before, after = tensors(source_run), tensors(tmp_path / "run")
    for name in before:
        if name.startswith("backbone."):
            block = int(name.split(".")[1])
            same = block < 4 or (batchnorm == "frozen" and _is_statistic(name))
            assert torch.equal(before[name], after[name]) == same, name


def test_full_with_sgd_trains_every_layer(new_digits, transfer_config, source_run, tmp_path, recorder):
    config = dataclasses.replace(transfer_config, strategy="full", optimizer="sgd", epochs=1)
    finetune(new_digits, config, tmp_path / "run", reporter=recorder)
    before, after = tensors(source_run), tensors(tmp_path / "run")
    for name in before:
        if name.startswith("backbone."):
            assert torch.equal(before[name], after[name]) == _is_statistic(name), name


def test_normalizations_that_never_saw_data_follow_the_batches_whatever_is_asked(source_run):
    after = tensors(source_run)  # weights none, batchnorm frozen
    means = [after[n] for n in after if n.endswith("running_mean")]
    assert len(means) == 6
    assert all((mean != 0).any() for mean in means)


def test_statistics_are_those_of_all_training_pictures_whatever_the_batch_size(
    new_digits, transfer_config, tmp_path, recorder
):
    config = dataclasses.replace(transfer_config, strategy="full", epochs=1, batchnorm="train", lr=1e-9, augment="none")
    found = []
    for batch_size in (4, 32):
        finetune(
            new_digits,
            dataclasses.replace(config, batch_size=batch_size),
            tmp_path / str(batch_size),
            reporter=recorder,
        )
        found.append(tensors(tmp_path / str(batch_size)))
    for name in found[0]:
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)


def test_a_diverged_training_says_so_and_leaves_nothing(new_digits, transfer_config, tmp_path, recorder):
    config = dataclasses.replace(transfer_config, strategy="full", lr=99.0, weight_decay=10.0)
    with pytest.raises(InputError, match=r"training diverged in epoch \d of tune: .* give a lower --lr"):
        finetune(new_digits, config, tmp_path / "run", reporter=recorder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", ["mlp:24", "flatten-mlp:16"])
def test_heads_other_than_linear(head, new_digits, transfer_config, tmp_path, recorder):
    config = dataclasses.replace(transfer_config, head=head, dropout=0.2, strategy="lp-ft", epochs=1)
    checkpoint = finetune(new_digits, config, tmp_path / "run", reporter=recorder)
    width = int(head.split(":")[1])
    assert tensors(tmp_path / "run")["head.classifier.weight"].shape == (5, width)
    assert checkpoint.spec.head == head


def test_the_best_epoch_is_chosen_on_pictures_cut_from_train(new_digits, transfer_config, tmp_path, recorder):
    config = dataclasses.replace(
        transfer_config, strategy="full", select_fraction=0.25, patience=1, epochs=12, batchnorm="train",
        optimizer="sgd", lr=0.5,
    )  # fmt: skip
    finetune(new_digits, config, tmp_path / "run", reporter=recorder)
    rows = history(tmp_path / "run")
    final = rows.pop()
    scores = [(float(r["select_top1"]), -float(r["select_loss"])) for r in rows]
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())["kept_row"]
    assert kept == scores.index(max(scores)) + 1
    assert len(rows) == 12 or len(rows) == kept + 1  # patience of one
    top1 = json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]["top1"]
    assert (final["stage"], int(final["epoch"])) == ("final", kept)
    assert top1 == pytest.approx(float(final["val_top1"]), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"strategy": "last:7"}, InputError, "this backbone has 6 blocks; give last:6 or full"),
        ({"backbone": "small_cn", "weights": "none"}, EdgetlError, "did you mean small_cnn"),
        ({"backbone": "mobilenet_v2"}, WeightsError, "holds backbone small_cnn, not mobilenet_v2"),
        ({"weights": "nowhere.pth"}, WeightsError, "nowhere.pth: no such file"),
        ({"weights": "default"}, WeightsError, "small_cnn has no published weights"),
        ({"mean": (0.5,)}, EdgetlError, "preprocess.mean has 1 values, RGB has 3"),
        ({"select_fraction": 0.01}, DatasetError, "give more pictures or 0"),
    ],
)
def test_wrong_settings_leave_nothing_behind(change, kind, message, new_digits, transfer_config, tmp_path, recorder):
    config = dataclasses.replace(transfer_config, **change)
    with pytest.raises(kind) as caught:
        finetune(new_digits, config, tmp_path / "run", reporter=recorder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_force_replaces_runs_and_nothing_else(new_digits, transfer_config, tmp_path, recorder):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("site: mine")
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r'holds "thesis.txt", so it is not just a run, and --force would delete'):
        finetune(new_digits, transfer_config, out, reporter=recorder, force=True)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"config.yaml": "site: mine", "thesis.txt": "mine"}
    with pytest.raises(InputError, match="is a file; --out names the run's folder"):
        finetune(new_digits, transfer_config, out / "config.yaml", reporter=recorder)


def test_a_run_is_replaced_only_by_a_complete_one(new_digits, transfer_config, transfer_run, tmp_path, recorder):
    out = tmp_path / "run"
    shutil.copytree(transfer_run, out)
    before = tensors(out)
    bad = dataclasses.replace(transfer_config, strategy="full", lr=99.0, weight_decay=10.0)
    with pytest.raises(InputError, match="diverged"):
        finetune(new_digits, bad, out, reporter=recorder, force=True)
    assert all(torch.equal(before[name], value) for name, value in tensors(out).items())
    finetune(new_digits, dataclasses.replace(transfer_config, epochs=1), out, reporter=recorder, force=True)
    assert len(history(out)) == 1 + 1 + 1
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_cache_that_cannot_be_written_or_is_stale_does_no_harm(
    new_digits, transfer_config, tmp_path, recorder, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made here
    config = dataclasses.replace(transfer_config, strategy="probe", epochs=2)
    finetune(new_digits, config, tmp_path / "a", reporter=recorder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    finetune(new_digits, config, tmp_path / "b", reporter=recorder)
    for path in (tmp_path / "cache").rglob("*.npy"):
        np.save(path, np.load(path) + 1)  # as another version of the backbone's code would have left it
    finetune(new_digits, config, tmp_path / "c", reporter=recorder)
    assert history(tmp_path / "a") == history(tmp_path / "b") == history(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "last:0"}, "--strategy"),
        ({"strategy": "everything"}, "--strategy"),
        ({"epochs": 0}, "--epochs"),
        ({"dropout": 1.5}, "--dropout"),
        ({"lr": -1.0}, "--lr"),
        ({"optimizer": "adm"}, "--optimizer"),
        ({"augment": "lots"}, "--augment"),
        ({"patience": 3}, "--patience needs --select-fraction"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        FinetuneConfig(**change)


def test_settings_from_a_file_name_what_is_wrong():
    with pytest.raises(InputError, match='conf: unknown setting "epoch"; known are augment'):
        FinetuneConfig.from_dict({"epoch": 3}, "conf")
    with pytest.raises(InputError, match="conf: epochs is 'ten', that is not of the right type"):
        FinetuneConfig.from_dict({"epochs": "ten"}, "conf")
    assert FinetuneConfig.from_dict({"lr": 1, "size": [32, 48]}).size == (32, 48)
    assert FinetuneConfig.from_dict(FinetuneConfig().to_dict()) == FinetuneConfig()
