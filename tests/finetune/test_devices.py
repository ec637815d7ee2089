"""Two processes train as one does."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import torch
import yaml
from fixtures_trained import Recorder
from test_finetune import history, tensors

from edgetl.artifacts import write_text
from edgetl.errors import InputError, Interrupted
from edgetl.finetune import FinetuneConfig, finetune
from edgetl.finetune.data import EpochSampler
from edgetl.finetune.ranks import Ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(transfer_config):
    return dataclasses.replace(transfer_config, epochs=3)


@pytest.fixture(scope="module")
def alone(new_digits, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("devices") / "alone"
    finetune(new_digits, config, out, reporter=Recorder())
    return out


def test_each_takes_its_part_of_the_batches_of_one():
    whole = list(EpochSampler(21, 3))
    samplers = [EpochSampler(21, 3, ranks=Ranks(rank, 2)) for rank in range(2)]
    parts = [list(sampler) for sampler in samplers]
    assert [len(part) for part in parts] == [10, 10] == [len(s) for s in samplers]
    batches = [whole[i : i + 4] for i in range(0, 20, 4)]
    for number, batch in enumerate(batches):
        mine = [part[2 * number : 2 * number + 2] for part in parts]
        assert sorted(mine[0] + mine[1]) == sorted(batch)
    samplers[1].epoch, samplers[1].start = 0, 8
    assert list(samplers[1]) == parts[1][4:]


def test_two_processes_give_the_numbers_of_one(new_digits, config, alone, tmp_path):
    recorder = Recorder()
    finetune(new_digits, dataclasses.replace(config, devices=2), tmp_path / "two", reporter=recorder)
    assert any(stage[0] == "tune" for stage in recorder.stages)
    assert_same_numbers(tmp_path / "two", alone)


def test_two_processes_share_frozen_blocks_and_averaged_weights(new_digits, config, tmp_path):
    settings = dataclasses.replace(config, strategy="last:2", ema=0.9, epochs=1, views=0)
    finetune(new_digits, settings, tmp_path / "alone", reporter=Recorder())
    finetune(new_digits, dataclasses.replace(settings, devices=2, views=4), tmp_path / "two", reporter=Recorder())
    assert_same_numbers(tmp_path / "two", tmp_path / "alone")


def test_two_machines_give_the_numbers_of_one(new_digits, config, alone, monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    both = dataclasses.replace(config, nodes=2)
    write_text(tmp_path / "settings.yaml", yaml.safe_dump(both.to_dict()))
    command = [sys.executable, "-m", "edgetl.cli.main", "finetune", new_digits.root]
    second = subprocess.Popen(
        [*command, "--config", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / "second")],
        env={**os.environ, "NODE_RANK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    finetune(new_digits, both, tmp_path / "first", reporter=Recorder())
    told, _ = second.communicate(timeout=60)
    assert second.returncode == 0, told
    assert "this machine's part is done; the run is on the one with NODE_RANK 0" in told
    assert not (tmp_path / "second").exists()
    assert_same_numbers(tmp_path / "first", alone)


def assert_same_numbers(out, alone):
    ours, theirs = tensors(out), tensors(alone)
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name].float(), tensor.float(), rtol=1e-3, atol=1e-4), name
    for row, other in zip(history(out), history(alone), strict=True):
        assert row["stage"] == other["stage"]
        for column in ("train_loss", "train_top1", "val_loss", "val_top1", "lr"):
            if other[column]:
                noise = 0.01 if column.endswith("top1") else 1e-3  # a picture or two on the edge
                assert float(row[column]) == pytest.approx(float(other[column]), rel=1e-3, abs=noise), column
    metrics = [json.loads((run / "metrics.json").read_text())["val"] for run in (out, alone)]
    assert metrics[0]["top1"] == pytest.approx(metrics[1]["top1"], abs=0.01)


def test_stopped_and_resumed_two_processes_end_where_they_would_have(new_digits, config, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    two = dataclasses.replace(config, devices=2, dropout=0.3)
    finetune(new_digits, two, whole, reporter=Recorder())

    class Killer(Recorder):
        sent = False

        def progress(self, stage, done, total, text=""):
            if stage == "tune" and done == 6 and not self.sent:
                self.sent = True
                os.kill(os.getpid(), signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(Interrupted, match="go on with the same command and --resume"):
        finetune(new_digits, two, out, reporter=Killer())
    assert not (out / "checkpoint.safetensors").exists()
    finetune(new_digits, two, out, reporter=Recorder(), resume=True)
    ours, theirs = tensors(out), tensors(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_goes_wrong_in_a_process_is_said_here(new_digits, config, tmp_path):
    broken = dataclasses.replace(config, devices=2, weights=str(tmp_path / "none.pth"))
    with pytest.raises(Exception, match=r"none\.pth"):
        finetune(new_digits, broken, tmp_path / "run", reporter=Recorder())
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_shared_is_refused(new_digits, config, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="--batch-size is 16: it must be a multiple of the 3 devices"):
        dataclasses.replace(config, devices=3)
    with pytest.raises(InputError, match="--strategy gradual runs on one device"):
        FinetuneConfig(strategy="gradual", devices=2)
    with pytest.raises(InputError, match="--nodes needs MASTER_ADDR, MASTER_PORT"):
        finetune(new_digits, dataclasses.replace(config, nodes=2), tmp_path / "run", reporter=Recorder())
    monkeypatch.setenv("NODE_RANK", "2")
    with pytest.raises(InputError, match="NODE_RANK is 2: with --nodes 2 it must be below that"):
        finetune(new_digits, dataclasses.replace(config, nodes=2), tmp_path / "run", reporter=Recorder())
