"""Killed, out of disk, robbed of a picture: nothing is lost or damaged, and the result is the same in the end."""

import dataclasses
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from fixtures_trained import Recorder

from edgetl.dataset import open_dataset
from edgetl.errors import InputError, PictureError
from edgetl.finetune import finetune

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(transfer_config):
    return dataclasses.replace(transfer_config, dropout=0.3, epochs=4, strategy="full")


@pytest.fixture
def own_digits(new_digits_folder, tmp_path):
    """A copy of the pictures that a test may damage."""
    shutil.copytree(new_digits_folder, tmp_path / "digits")
    return open_dataset(tmp_path / "digits")


@pytest.fixture(scope="module")
def whole(new_digits, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "whole"
    finetune(new_digits, config, out, reporter=Recorder())
    return out


def check_same(run, other):
    for name in ("checkpoint.safetensors", "history.csv", "stability.csv"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


def test_killed_at_any_moment_a_run_goes_on_to_the_same_end(new_digits_folder, new_digits, config, whole, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(config.to_dict()))
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "edgetl.cli.main", "finetune", str(new_digits_folder), "--config", str(settings),
        "--out", str(out),
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not (out / "last.ckpt").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    torch.load(out / "last.ckpt", weights_only=True)
    assert not (out / "metrics.json").exists()
    finetune(new_digits, config, out, reporter=Recorder(), resume=True)
    check_same(out, whole)
    assert not list(out.glob(".*"))


class Saboteur(Recorder):
    """Does something at a step of tuning, once."""

    def __init__(self, step, act):
        super().__init__()
        self.step = step
        self.act = act

    def progress(self, stage, done, total, text=""):
        if stage == "tune" and done == self.step and self.act is not None:
            act, self.act = self.act, None
            act()


def test_a_full_disk_stops_it_and_leaves_the_last_checkpoint(new_digits, config, whole, tmp_path):
    out, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    full = Saboteur(6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1])))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(InputError, match=r"last\.ckpt: cannot be written .* the one before it remains; make room"):
            finetune(new_digits, config, out, reporter=full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert torch.load(out / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not (out / ".last.ckpt.new").exists()
    finetune(new_digits, config, out, reporter=Recorder(), resume=True)
    check_same(out, whole)


def test_a_picture_that_vanishes_is_named_and_its_return_resumes(own_digits, config, whole, tmp_path):
    out, victim = tmp_path / "run", own_digits.split("train")[7].path
    aside = tmp_path / "aside.png"
    with pytest.raises(PictureError) as caught:
        finetune(own_digits, config, out, reporter=Saboteur(6, lambda: victim.replace(aside)))
    assert str(victim) in str(caught.value)
    assert "bring it back as it was, then go on with the same command and --resume" in str(caught.value)
    aside.replace(victim)
    finetune(own_digits, config, out, reporter=Recorder(), resume=True)
    check_same(out, whole)


def test_a_picture_that_breaks_before_anything_was_saved_leaves_nothing(own_digits, config, tmp_path):
    victim = own_digits.split("train")[7].path
    with pytest.raises(PictureError):
        finetune(own_digits, config, tmp_path / "run", reporter=Saboteur(1, lambda: victim.write_bytes(b"no picture")))
    assert not (tmp_path / "run").exists()


def test_a_picture_that_a_worker_cannot_read_is_named_in_one_line(own_digits, config, tmp_path):
    victim = own_digits.split("train")[7].path
    victim.write_bytes(b"no picture")
    with pytest.raises(PictureError) as caught:
        finetune(own_digits, dataclasses.replace(config, workers=1), tmp_path / "run", reporter=Recorder())
    assert str(caught.value).startswith(f"{victim}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
