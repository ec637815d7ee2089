"""What a job decides before and after the steps themselves."""

import dataclasses
import errno
import os

import pytest
import torch
import yaml
from fixtures_trained import Recorder
from torch import nn

from edgetl.backbones import load_pretrained, new_network
from edgetl.finetune import FinetuneConfig, finetune
from edgetl.finetune.balance import Balance
from edgetl.finetune.job import Job
from edgetl.finetune.ranks import ALONE, Ranks
from edgetl.finetune.run_folder import RunFolder

PLAIN = FinetuneConfig(backbone="small_cnn", weights="none", batch_size=16, augment="light", epochs=1)


def job_of(dataset, config, folder=None, ranks=ALONE):
    torch.manual_seed(0)
    network, spec = new_network(load_pretrained("small_cnn", "none"), dataset.classes)
    train, val = dataset.split("train"), dataset.split("val")
    return Job(network, spec, config, train, (), val, Balance("none"), None, folder, Recorder(), ranks)


def test_a_machine_without_the_runs_folder_takes_part_in_last_n(digits, tmp_path):
    config = dataclasses.replace(PLAIN, strategy="last:2", nodes=2)
    assert job_of(digits, config, RunFolder(tmp_path / "elsewhere"), Ranks(1, 2, 0, 1))._maps() is None


def test_on_a_full_disk_frozen_blocks_run_at_every_step_and_it_is_said(digits, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    job = job_of(digits, dataclasses.replace(PLAIN, strategy="last:2"))
    assert job._maps() is None
    [note] = job.reporter.notes
    assert note.startswith(f"frozen blocks run at every step: {tmp_path}/edgetl/maps: cannot be written (No space left")


class Seen(Exception):
    """Ends a training where it would begin."""


@pytest.mark.parametrize(("strategy", "views"), [("full", 4), ("last:2", 0), ("last:2", 4)])
def test_training_is_channels_last_through_every_convolution(strategy, views, digits, monkeypatch):
    """Of the network, and of what is fed: whole pictures, or maps that frozen blocks gave."""
    layouts = []

    def fit(network, groups, train, *_, **__):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda m, x, y: layouts.append((m.weight, x[0], y)))
        network(next(iter(train))[0])
        raise Seen

    monkeypatch.setattr("edgetl.finetune.job.fit", fit)
    job = job_of(digits, dataclasses.replace(PLAIN, strategy=strategy, views=views))
    with pytest.raises(Seen):
        job.run(resume=False)
    assert len(layouts) == (2 if strategy == "last:2" and views else 6)
    for tensors in layouts:
        assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)


@pytest.mark.slow
def test_where_no_rate_helps_the_optimizers_own_is_taken_and_said(digits, monkeypatch, tmp_path):
    monkeypatch.setattr("edgetl.finetune.job.find_rate", lambda *_, **__: None)
    recorder = Recorder()
    finetune(digits, dataclasses.replace(PLAIN, strategy="full", lr="auto"), tmp_path / "run", reporter=recorder)
    assert "--lr auto: no rate made the loss fall, so it is the optimizer's own, 0.0005" in recorder.notes
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["resolved"]["lr"] == 5e-4


@pytest.mark.parametrize(("asked", "clipped_to"), [(1.0, 1.0), (0.25, 0.25), (0.0, None)])
def test_gradients_are_clipped_as_asked_and_a_probes_never(asked, clipped_to, digits):
    job = job_of(digits, dataclasses.replace(PLAIN, max_gradient_norm=asked))
    assert job._descent(clipped=True).largest_gradient == clipped_to
    assert job._descent(clipped=False).largest_gradient is None
