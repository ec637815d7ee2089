"""What each setting does to a real training on digits."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import torch
import yaml
from fixtures_trained import Recorder
from test_finetune import history, tensors

from edgetl.dataset import open_dataset, write_digits
from edgetl.errors import InputError, MissingExtraError
from edgetl.finetune import finetune

pytestmark = pytest.mark.slow


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def trained(data, config, out, **changes):
    recorder = Recorder()
    finetune(data, dataclasses.replace(config, **changes), out, reporter=recorder)
    return recorder


def distance(run, source):
    before, after = tensors(source), tensors(run)
    names = [n for n in before if n.startswith("backbone.") and before[n].ndim == 4]
    return sum(float((after[n] - before[n]).square().sum()) for n in names) ** 0.5


def test_pulled_back_the_network_stays_nearer_to_its_source(new_digits, transfer_config, source_run, tmp_path):
    changes = {"strategy": "full", "epochs": 4, "optimizer": "sgd", "lr": 0.02}
    trained(new_digits, transfer_config, tmp_path / "free", **changes)
    trained(new_digits, transfer_config, tmp_path / "held", l2_sp=5.0, **changes)
    assert 0 < distance(tmp_path / "held", source_run) < 0.7 * distance(tmp_path / "free", source_run)


def test_gradual_leaves_the_lowest_block_alone_until_its_turn(new_digits, transfer_config, source_run, tmp_path):
    trained(new_digits, transfer_config, tmp_path / "run", strategy="gradual", epochs=5)
    rows = (tmp_path / "run" / "stability.csv").read_text().splitlines()[1:]
    drift = {(int(e), b): float(d) for e, b, d in (row.split(",") for row in rows)}
    assert drift[1, "5"] == 0
    assert drift[1, "head"] > 0
    assert drift[2, "5"] > 0
    assert drift[2, "0"] == 0
    assert drift[5, "0"] > 0


def test_a_compiled_network_learns_what_a_plain_one_does(new_digits, transfer_config, monkeypatch, tmp_path):
    plain = torch.nn.Module.compile  # all of it but the C++ compiler, which takes minutes
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: plain(network, backend="aot_eager"))
    trained(new_digits, transfer_config, tmp_path / "plain", strategy="full", epochs=1)
    trained(new_digits, transfer_config, tmp_path / "compiled", strategy="full", epochs=1, compile=True)
    ours, theirs = tensors(tmp_path / "compiled"), tensors(tmp_path / "plain")
    assert all(torch.allclose(ours[n].float(), theirs[n].float(), rtol=1e-3, atol=1e-3) for n in theirs)


def test_without_a_compiler_nothing_is_left_and_it_is_said(new_digits, transfer_config, monkeypatch, tmp_path):
    from torch._inductor import config, cpp_builder

    torch._dynamo.reset()
    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(config, "force_disable_caches", True)
    cpp_builder.cpp_compiler_search.cache_clear()
    with pytest.raises(InputError, match=r"--compile: torch.compile failed .*leave --compile out") as told:
        trained(new_digits, transfer_config, tmp_path / "run", strategy="full", epochs=1, compile=True)
    cpp_builder.cpp_compiler_search.cache_clear()
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_averaged_weights_are_kept_and_judged(new_digits, transfer_config, tmp_path):
    trained(new_digits, transfer_config, tmp_path / "plain", strategy="full")
    trained(new_digits, transfer_config, tmp_path / "ema", strategy="full", ema=0.9)
    plain, averaged = tensors(tmp_path / "plain"), tensors(tmp_path / "ema")
    assert any(not torch.equal(plain[n], averaged[n]) for n in plain)
    last = torch.load(tmp_path / "ema" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in averaged.items():
        assert torch.equal(last[f"average.module.{name}"], tensor), name
        if name.endswith("classifier.weight"):
            assert not torch.equal(last[f"network.{name}"], tensor)
    rows = history(tmp_path / "ema")
    assert float(rows[-2]["val_top1"]) == pytest.approx(metrics(tmp_path / "ema")["val"]["top1"], abs=1e-6)


@pytest.mark.parametrize("mix", ["mixup", "cutmix", "both"])
def test_mixed_pictures_are_learned_from(mix, new_digits, transfer_config, tmp_path):
    trained(new_digits, transfer_config, tmp_path / "run", mix=mix)
    assert metrics(tmp_path / "run")["val"]["top1"] > 0.5


def test_a_teacher_pulls_the_answers_to_its_own(new_digits, transfer_config, transfer_run, tmp_path):
    """With all of the loss the teacher's, labels mean nothing: the student agrees with it all the same."""
    trained(
        new_digits, transfer_config, tmp_path / "run", strategy="full", epochs=12, teacher=str(transfer_run),
        teacher_weight=1.0, lr=2e-3, batchnorm="train",
    )  # fmt: skip
    assert metrics(tmp_path / "run")["val"]["top1"] > 0.6


def test_a_teacher_of_other_classes_is_refused(new_digits, transfer_config, source_run, tmp_path):
    with pytest.raises(InputError, match=r'knows other classes than these pictures \(not "5"\)'):
        trained(new_digits, transfer_config, tmp_path / "run", teacher=str(source_run))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Digit 5 with 40 pictures, digits 6 and 7 with 4."""
    import shutil

    root = tmp_path_factory.mktemp("uneven") / "data"
    write_digits(root, only=(5, 6, 7), per_class=40)
    for digit in "67":
        for path in sorted((root / "train" / digit).iterdir())[4:]:
            path.unlink()
    shutil.rmtree(root / "test", ignore_errors=True)
    return open_dataset(root)


def test_uneven_classes_are_balanced_and_it_is_said(uneven, transfer_config, tmp_path):
    recorder = trained(uneven, transfer_config, tmp_path / "run")
    assert recorder.notes[0].startswith('"5" has 40 training pictures, "6" has 4: small classes are drawn more often')
    assert metrics(tmp_path / "run")["imbalance"]["kind"] == "sampling"
    quiet = trained(uneven, transfer_config, tmp_path / "none", imbalance="none")
    assert not any("training pictures, " in note for note in quiet.notes)
    of_small = [
        np.mean([row["recall"] for row in metrics(tmp_path / run)["val"]["per_class"][1:]]) for run in ("run", "none")
    ]
    assert of_small[0] >= of_small[1]


def test_ridge_is_a_head_without_training(new_digits, transfer_config, tmp_path):
    trained(new_digits, transfer_config, tmp_path / "run", strategy="probe", head_init="ridge", lr=1e-9, epochs=1)
    assert metrics(tmp_path / "run")["val"]["top1"] > 0.6


def test_a_rate_that_was_found_is_used_and_said(new_digits, transfer_config, tmp_path):
    recorder = trained(new_digits, transfer_config, tmp_path / "run", lr="auto")
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["lr"] == "auto"
    assert 1e-5 < saved["resolved"]["lr"] < 0.5
    assert f"--lr auto: {saved['resolved']['lr']:.2g} by a range test" in recorder.notes
    peak = max(float(row["lr"]) for row in history(tmp_path / "run") if row["stage"] == "tune")
    assert peak <= saved["resolved"]["lr"]


def test_what_frozen_blocks_give_is_as_good_as_running_them(new_digits, transfer_config, source_run, tmp_path):
    changes = {"strategy": "last:2", "augment": "none", "epochs": 2}
    recorder = trained(new_digits, transfer_config, tmp_path / "maps", **changes)
    plain = trained(new_digits, transfer_config, tmp_path / "plain", views=0, **changes)
    assert any(s[0] == "frozen blocks on train" for s in recorder.stages)
    assert not any(s[0].startswith("frozen blocks") for s in plain.stages)
    ours, theirs, before = tensors(tmp_path / "maps"), tensors(tmp_path / "plain"), tensors(source_run)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        frozen = name.startswith("backbone.") and int(name.split(".")[1]) < 4
        if frozen:
            assert torch.equal(tensor, before[name]), name
        else:  # float16 in between
            assert torch.allclose(tensor.float(), theirs[name].float(), atol=5e-3), name


def test_the_result_is_judged_on_bad_pictures_and_against_scratch(new_digits, transfer_config, tmp_path, monkeypatch):
    monkeypatch.setattr("edgetl.finetune.stage._CORRUPTED", 40)
    recorder = trained(new_digits, transfer_config, tmp_path / "run", robustness=True, compare_scratch=True, epochs=2)
    found = metrics(tmp_path / "run")
    assert len(found["robustness"]["top1"]) == 14
    assert all(len(levels) == 5 for levels in found["robustness"]["top1"].values())
    noise = found["robustness"]["top1"]["impulse noise"]
    assert found["robustness"]["clean_top1"] > noise[4]
    rows = found["scratch"]["rows"]
    assert [row["per_class"] for row in rows] == [1, 5, 10, None]
    assert [row["train_pictures"] for row in rows] == [5, 25, 50, 60]
    assert rows[-1]["transferred_top1"] == pytest.approx(found["val"]["top1"])
    assert all(row["interval"][0] <= row["gain"] <= row["interval"][1] for row in rows)
    assert rows[1]["transferred_top1"] > 0.4
    assert sum("of each class: " in note for note in recorder.notes) == 4
    assert found["verdict"]["text"] in recorder.notes


def test_tensorboard_has_the_history(new_digits, transfer_config, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    trained(new_digits, transfer_config, tmp_path / "run", loggers=("tensorboard",), epochs=2)
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    told = [event.value for event in events.Scalars("tune/val_top1")]
    rows = [float(row["val_top1"]) for row in history(tmp_path / "run") if row["stage"] == "tune"]
    assert told == pytest.approx(rows)
    assert len(events.Scalars("probe/train_loss")) == 1
    assert events.Scalars("final/top1")[0].value == pytest.approx(metrics(tmp_path / "run")["val"]["top1"])


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_logger_that_is_not_installed_is_named_and_nothing_is_left(name, new_digits, transfer_config, tmp_path):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(MissingExtraError, match=f"{name} is not installed, and --logger {name} needs it: pip install"):
        trained(new_digits, transfer_config, tmp_path / "run", loggers=(name,))
    assert not (tmp_path / "run").exists()
