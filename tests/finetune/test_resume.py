"""An interrupted training, resumed, is the training that was not interrupted: same history, same bits."""

import dataclasses
import os
import shutil
import signal

import pytest
import torch
from fixtures_trained import Recorder
from safetensors.torch import load_file

from edgetl.errors import CheckpointError, InputError, Interrupted
from edgetl.finetune import finetune
from edgetl.finetune.run_folder import RunFolder

pytestmark = pytest.mark.slow


class Killer(Recorder):
    """Sends a signal to this process when training reaches a step."""

    def __init__(self, step, number):
        super().__init__()
        self.step = step
        self.number = number

    def progress(self, stage, done, total, text=""):
        if stage == "tune" and done == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def config(transfer_config):
    return dataclasses.replace(transfer_config, dropout=0.3, epochs=3, select_fraction=0.2)


@pytest.fixture(scope="module")
def uninterrupted(new_digits, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("resume") / "whole"
    finetune(new_digits, config, out, reporter=Recorder())
    return out


@pytest.mark.parametrize(
    ("step", "number"),
    # 4 steps an epoch: in the middle of the first, at the end of the first, in the middle of the last
    [(2, signal.SIGTERM), (4, signal.SIGINT), (11, signal.SIGINT)],
)
def test_resumed_equals_uninterrupted(step, number, new_digits, config, uninterrupted, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=r"go on with the same command and --resume") as caught:
        finetune(new_digits, config, out, reporter=Killer(step, number))
    assert caught.value.exit_code == 130
    assert not (out / "checkpoint.safetensors").exists()
    finetune(new_digits, config, out, reporter=Recorder(), resume=True)
    assert (out / "history.csv").read_text() == (uninterrupted / "history.csv").read_text()
    ours, theirs = load_file(out / "checkpoint.safetensors"), load_file(uninterrupted / "checkpoint.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"ema": 0.9, "strategy": "full"}, 6),
        ({"strategy": "gradual", "batchnorm": "train"}, 6),
        ({"schedule": "one-cycle", "optimizer": "sgd", "strategy": "full"}, 5),
        ({"strategy": "last:2", "augment": "light"}, 7),
        ({"lr": "auto", "strategy": "full", "mix": "both", "imbalance": "sampling"}, 6),
    ],
)
def test_resumed_equals_uninterrupted_whatever_was_asked(changes, step, new_digits, config, tmp_path):
    settings = dataclasses.replace(config, select_fraction=0.0, **changes)
    whole, out = tmp_path / "whole", tmp_path / "run"
    finetune(new_digits, settings, whole, reporter=Recorder())
    with pytest.raises(Interrupted, match="--resume"):
        finetune(new_digits, settings, out, reporter=Killer(step, signal.SIGTERM))
    resumed = Recorder()
    finetune(new_digits, settings, out, reporter=resumed, resume=True)
    for name in ("checkpoint.safetensors", "history.csv", "stability.csv", "config.yaml"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert not any("range test" in note for note in resumed.notes)


def test_resuming_refuses_other_settings_pictures_and_complete_runs(
    new_digits, digits, config, uninterrupted, tmp_path
):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        finetune(new_digits, config, out, reporter=Killer(5, signal.SIGTERM))
    with pytest.raises(CheckpointError, match=r"was begun with batch_size=16, now batch_size=8"):
        finetune(new_digits, dataclasses.replace(config, batch_size=8), out, reporter=Recorder(), resume=True)
    with pytest.raises(CheckpointError, match="the pictures have changed"):
        finetune(digits, config, out, reporter=Recorder(), resume=True)
    with pytest.raises(InputError, match="it is an interrupted run: give --resume to go on, or --force"):
        finetune(new_digits, config, out, reporter=Recorder())
    with pytest.raises(CheckpointError, match="complete, there is nothing to resume"):
        finetune(new_digits, config, uninterrupted, reporter=Recorder(), resume=True)
    with pytest.raises(CheckpointError, match=r"config\.yaml: no such file"):
        finetune(new_digits, config, tmp_path / "none", reporter=Recorder(), resume=True)


def test_an_interruption_before_anything_was_saved_leaves_nothing(new_digits, config, tmp_path):
    class Early(Recorder):
        def progress(self, stage, done, total, text=""):
            if stage == "probe" and done == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="nothing was worth keeping yet"):
        finetune(new_digits, dataclasses.replace(config, head_init="zero"), tmp_path / "run", reporter=Early())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", ["full", "gradual"])
def test_a_training_that_patience_ended_is_not_trained_on(strategy, new_digits, config, tmp_path):
    """Stopped while the statistics are computed: what remains is to finish, not another epoch."""

    class Late(Recorder):
        def progress(self, stage, done, total, text=""):
            if stage == "scoring on val":
                os.kill(os.getpid(), signal.SIGTERM)

    settings = dataclasses.replace(
        config, epochs=8, patience=1, optimizer="sgd", lr=0.5, strategy=strategy, batchnorm="train"
    )
    whole, out = tmp_path / "whole", tmp_path / "run"
    finetune(new_digits, settings, whole, reporter=Recorder())
    rows = (whole / "history.csv").read_text()
    assert len(rows.splitlines()) < 1 + 8 + 1  # patience did end it
    with pytest.raises(Interrupted, match="go on with the same command and --resume"):
        finetune(new_digits, settings, out, reporter=Late())
    finetune(new_digits, settings, out, reporter=Recorder(), resume=True)
    assert (out / "history.csv").read_text() == rows
    assert (out / "checkpoint.safetensors").read_bytes() == (whole / "checkpoint.safetensors").read_bytes()


def test_resuming_refuses_a_file_that_has_changed_under_its_name(new_digits, config, transfer_run, tmp_path):
    out, teacher, weights = tmp_path / "run", tmp_path / "teacher", tmp_path / "w.safetensors"
    shutil.copytree(transfer_run, teacher)
    shutil.copy(config.weights, weights)
    named = dataclasses.replace(config, weights=str(weights), teacher=str(teacher))
    folder = RunFolder(out)
    folder.begin(named, new_digits, resume=False, force=False)
    folder.begin(named, new_digits, resume=True, force=False)
    for option, path, name in (
        ("weights", weights, weights),
        ("teacher", teacher / "checkpoint.safetensors", teacher),
    ):
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=f"what --{option} {name} names has changed since this run began"):
            folder.begin(named, new_digits, resume=True, force=False)
        path.write_bytes(before)
    folder.begin(named, new_digits, resume=True, force=False)
