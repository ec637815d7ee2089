"""Mixed precision: matrices are multiplied in bfloat16, weights and losses stay float32, and answers are numbers."""

import math

import pytest
import torch
from fixtures_trained import Recorder
from test_job import PLAIN, job_of
from torch.utils.data import DataLoader, TensorDataset

from edgetl.errors import InputError
from edgetl.finetune.data import FeatureRows, shuffled_loader
from edgetl.finetune.fit import Settings, evaluate_logits, fit, precision_of
from edgetl.finetune.objective import Objective
from edgetl.finetune.optimizers import Descent


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_cpu_trains_in_the_precision_that_was_asked_for(precision, dtype, digits):
    network = job_of(digits, PLAIN).network
    kinds = set()
    network.head.classifier.register_forward_hook(lambda m, x, y: kinds.add(y.dtype))
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(16) % 5
    result = fit(
        network,
        [{"params": list(network.parameters()), "lr": 1e-3, "weight_decay": 0.0}],
        shuffled_loader(FeatureRows(pictures, labels), 16, batch_size=8, seed=0),
        {"val": DataLoader(TensorDataset(pictures, labels), batch_size=8)},
        Settings("tune", 2, Objective(), Descent(), precision=precision),
        on_row=lambda rows: None,
        on_progress=Recorder().progress,
    )
    assert kinds == {dtype}  # in training and validation
    assert all(math.isfinite(row[name]) for row in result.rows for name in ("train_loss", "val_loss", "gradient_norm"))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    logits, _ = evaluate_logits(network, DataLoader(TensorDataset(pictures, labels), batch_size=8), lambda *_: None)
    assert logits.dtype == "float32"
    assert torch.from_numpy(logits).isfinite().all()


def test_what_a_cpu_has_no_arithmetic_for_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [precision_of(asked) for asked in ("auto", "fp32", "bf16")] == ["32-true", "32-true", "bf16-mixed"]
    with pytest.raises(InputError, match="--precision fp16 needs a GPU; take bf16 or fp32 on a CPU"):
        precision_of("fp16")
