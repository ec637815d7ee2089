"""Optimizers, schedules, losses and heads by numbers worked out apart from them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgetl.errors import InputError
from edgetl.finetune import FinetuneConfig
from edgetl.finetune.balance import balance_of
from edgetl.finetune.head_start import init_classifier, init_from_ridge, quieten
from edgetl.finetune.objective import Mixer, Objective, Penalty, Teacher
from edgetl.finetune.optimizers import Descent, optimizer_of, schedule_of
from edgetl.finetune.rate_range import find_rate, steepest_rate
from edgetl.finetune.ridge import fit_ridge
from edgetl.finetune.scratch import gain
from edgetl.finetune.verdict import verdict_of


def rates(descent, epochs, steps=10, lr=2.0):
    parameter = nn.Parameter(torch.ones(1))
    optimizer = optimizer_of(descent, [{"params": [parameter], "lr": lr, "weight_decay": 0.0}])
    schedule = schedule_of(descent, optimizer, steps, epochs)
    found = []
    for _ in range(steps * epochs):
        found.append(optimizer.param_groups[0]["lr"])
        parameter.grad = torch.zeros(1)
        optimizer.step()
        schedule.step()
    return found


def test_constant_keeps_its_rate_after_the_warm_up():
    found = rates(Descent(schedule="constant", warmup=0.2), 3)
    assert found[:6] == pytest.approx([2 * (i + 1) / 7 for i in range(6)])
    assert found[6:] == [2.0] * 24


def test_step_falls_to_a_tenth():
    assert rates(Descent(schedule="step:2", warmup=0), 6)[19:41:10] == pytest.approx([2.0, 0.2, 0.2])
    thirds = rates(Descent(schedule="step", warmup=0), 6)
    assert [thirds[i] for i in (0, 19, 20, 39, 40, 59)] == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02])


def test_cosine_ends_at_zero():
    found = rates(Descent(schedule="cosine", warmup=0), 4)
    assert found[0] == 2.0
    assert found[20] == pytest.approx(1.0)
    assert found[-1] < 0.01


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "adagrad"])
def test_one_cycle_rises_and_falls_for_every_optimizer(name):
    found = rates(Descent(name, schedule="one-cycle"), 10)
    assert max(found) == pytest.approx(2.0, rel=1e-3)
    assert 25 <= int(np.argmax(found)) <= 31
    assert found[-1] < 0.01
    assert found[0] == pytest.approx(2 / 25)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD"), ("rmsprop", "RMSprop"), ("adagrad", "Adagrad")],
)
def test_optimizers_are_what_they_are_called(name, kind):
    group = {"params": [nn.Parameter(torch.ones(1))], "lr": 0.1, "weight_decay": 0.3}
    optimizer = optimizer_of(Descent(name, momentum=0.7), [group])
    assert type(optimizer).__name__ == kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    if name in ("sgd", "rmsprop"):
        assert optimizer.param_groups[0]["momentum"] == 0.7


def test_penalties_are_the_textbook_sums():
    free, vector = nn.Parameter(torch.tensor([[1.0, -2.0]])), nn.Parameter(torch.ones(5))
    bound = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    penalty = Penalty([free, vector], [bound], l1=0.1, l2=0.2, l2_sp=0.5)
    assert penalty().item() == pytest.approx(0.1 * 3 + 0.5 * 0.2 * 5)
    with torch.no_grad():
        bound += torch.tensor([[1.0, -1.0]])
    assert penalty().item() == pytest.approx(0.1 * 3 + 0.5 * 0.2 * 5 + 0.5 * 0.5 * 2)
    bound.requires_grad_(False)  # not trained now: nothing to hold
    assert penalty().item() == pytest.approx(0.8)


def test_what_is_held_near_its_start_is_pulled_to_zero_by_absolute_values_alone():
    head, body = nn.Parameter(torch.tensor([[1.0, -2.0]])), nn.Parameter(torch.tensor([[3.0, 4.0]]))
    penalty = Penalty([head, body], [body], l1=0.1, l2=0.2, l2_sp=0.5)
    assert penalty().item() == pytest.approx(0.1 * (3 + 7) + 0.5 * 0.2 * 5)
    assert Penalty([head, body], [body], l1=0.0, l2=0.2, l2_sp=0.5)().item() == pytest.approx(0.5 * 0.2 * 5)
    assert Penalty([head, body], [body], l1=0.0, l2=0.2, l2_sp=0.0)().item() == pytest.approx(0.5 * 0.2 * 30)


class Fixed(nn.Module):
    """Answers the same logits whatever it sees; keeps what it saw."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        self.seen = x
        return self.logits


def test_the_loss_is_weighted_smoothed_and_counts_hits():
    logits = [[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]]
    labels, weights = torch.tensor([0, 1]), torch.tensor([1.0, 4.0, 1.0])
    loss, hits = Objective(0.0, weights)(Fixed(logits), torch.zeros(2, 1), labels)
    each = -F.log_softmax(torch.tensor(logits), 1)[[0, 1], [0, 1]]
    assert loss.item() == pytest.approx(float((each * torch.tensor([1.0, 4.0])).sum() / 5))
    assert int(hits) == 1
    smoothed, _ = Objective(0.1)(Fixed(logits), torch.zeros(2, 1), labels)
    uniform = -F.log_softmax(torch.tensor(logits), 1).mean(1)
    assert smoothed.item() == pytest.approx(float((0.9 * each + 0.1 * uniform).mean()))


def test_a_teacher_is_followed_at_its_temperature_and_in_its_order():
    taught, student = [[4.0, 0.0, 0.0]], [[0.0, 0.0, 4.0]]
    teacher = Teacher(Fixed(taught), (8, 8), [2, 1, 0], weight=1.0, temperature=2.0)
    pictures = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    loss, _ = Objective(teacher=teacher)(Fixed(student), pictures, torch.tensor([0]))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)  # the student's order is the teacher's reversed
    same = Teacher(Fixed(taught), (8, 8), [0, 1, 2], weight=0.25, temperature=2.0)
    loss, _ = Objective(teacher=same)(Fixed(student), pictures, torch.tensor([0]))
    p, q = F.softmax(torch.tensor(taught) / 2, 1), F.log_softmax(torch.tensor(student) / 2, 1)
    divergence = float((p * (p.log() - q)).sum()) * 4
    cross = float(F.cross_entropy(torch.tensor(student), torch.tensor([0])))
    assert loss.item() == pytest.approx(0.75 * cross + 0.25 * divergence, rel=1e-5)


def test_a_teacher_sees_pictures_at_its_own_size():
    network = Fixed([[1.0, 0.0]])
    teacher = Teacher(network, (12, 10), [0, 1], weight=0.5, temperature=1.0)
    teacher.loss(torch.zeros(1, 2), torch.full((1, 6, 5, 3), 77, dtype=torch.uint8))
    assert network.seen.shape == (1, 12, 10, 3)
    assert torch.allclose(network.seen, torch.tensor(77.0))


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
def test_mixing_keeps_shares_of_labels_equal_to_shares_of_pixels(kind):
    pictures = torch.stack([torch.full((8, 8, 3), v, dtype=torch.uint8) for v in (0, 200)])
    for seed in range(8):
        torch.manual_seed(seed)
        mixed, shares = Mixer(kind, 2)(pictures, torch.tensor([0, 1]))
        assert mixed.shape == pictures.shape
        assert torch.allclose(shares.sum(1), torch.ones(2))
        assert torch.allclose(mixed.mean((1, 2, 3)), 200 * shares[:, 1], atol=0.1)


@pytest.mark.parametrize(("counts", "kind"), [((10, 12), "none"), ((10, 30), "weights"), ((10, 100), "sampling")])
def test_imbalance_is_met_by_its_size_and_said(counts, kind):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    found = balance_of(labels, ("bolt", "nut"), "auto")
    assert found.kind == kind
    assert bool(found.reason) == (kind != "none")
    if kind == "weights":
        assert '"nut" has 30 training pictures, "bolt" has 10' in found.reason
        assert found.class_weights[labels].mean() == pytest.approx(1)
        assert found.class_weights[0] == pytest.approx(3 * found.class_weights[1])
    if kind == "sampling":
        assert found.shares.sum() == pytest.approx(1)
        assert found.shares[:10].sum() == pytest.approx(0.5)


def points(count=60, width=12, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = rng.normal(size=(classes, width)) * 1.5
    return centres[labels] + rng.normal(size=(count, width)) + 5.0, labels


@pytest.mark.parametrize("width", [12, 90])
def test_ridge_left_out_answers_are_those_of_fits_without_the_picture(width):
    features, labels = points(width=width)
    found = fit_ridge(features, labels, 3)
    from sklearn.linear_model import Ridge as Other

    centred = features - features.mean(0)
    alpha = found.penalty * float(np.square(np.linalg.svd(centred, compute_uv=False)).mean())
    targets = np.eye(3)[labels]
    scale = np.linalg.norm(found.weight) / np.linalg.norm(Other(alpha=alpha).fit(features, targets).coef_)
    for i in (0, 17, 59):
        rest = np.arange(60) != i
        # The mean is fitted too: leaving a picture out moves it, which the closed form accounts for.
        other = Other(alpha=alpha).fit(features[rest], targets[rest])
        assert found.left_out[i] == pytest.approx(other.predict(features[i : i + 1])[0] * scale, rel=1e-6, abs=1e-6)


def test_ridge_with_weights_is_that_of_pictures_that_come_several_times():
    features, labels = points()
    counts = np.where(labels == 0, 3.0, 1.0)
    weighted = fit_ridge(features, labels, 3, counts)
    from sklearn.linear_model import Ridge as Other

    share = counts / counts.sum()
    centred = (features - share @ features) * np.sqrt(60 * share)[:, None]
    alpha = weighted.penalty * float(np.square(np.linalg.svd(centred, compute_uv=False)).mean())
    targets = np.eye(3)[labels]
    whole = Other(alpha=alpha).fit(features, targets, sample_weight=60 * share)
    scale = np.linalg.norm(weighted.weight) / np.linalg.norm(whole.coef_)
    assert weighted.weight == pytest.approx(whole.coef_ * scale, rel=1e-6, abs=1e-9)
    for i in (0, 17, 59):
        rest = np.arange(60) != i
        other = Other(alpha=alpha).fit(features[rest], targets[rest], sample_weight=60 * share[rest])
        assert weighted.left_out[i] == pytest.approx(other.predict(features[i : i + 1])[0] * scale, rel=1e-6, abs=1e-6)


def test_a_quiet_layer_answers_the_same_with_less_force():
    features, labels = points()
    seen = torch.from_numpy(features).float()
    layer = nn.Linear(12, 3)
    init_from_ridge(layer, features, labels)
    before = layer(seen).detach()
    assert float(before.std(1).mean()) > 1
    quieten(layer, before)
    after = layer(seen).detach()
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert float(after.std(1).mean()) == pytest.approx(0.1, rel=1e-4)
    quieten(layer, torch.full((5, 3), 2.0))  # one that tells no class from another is left as it is
    assert torch.equal(layer(seen), after)


def test_ridge_is_a_classifier_and_fills_the_layer():
    features, labels = points()
    layer = nn.Linear(12, 3)
    init_from_ridge(layer, features.astype(np.float32), labels)
    logits = layer(torch.from_numpy(features).float()).detach().numpy()
    found = fit_ridge(features.astype(np.float32), labels, 3)
    assert logits == pytest.approx(features @ found.weight.T + found.bias, abs=1e-3)
    assert (logits.argmax(1) == labels).mean() > 0.8


def test_heads_begin_as_asked():
    layer = nn.Linear(400, 300)
    torch.manual_seed(0)
    init_classifier(layer, "zero")
    assert not layer.weight.any()
    init_classifier(layer, "xavier")
    assert layer.weight.abs().max().item() == pytest.approx((6 / 700) ** 0.5, rel=1e-2)
    init_classifier(layer, "he")
    assert layer.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=1e-2)
    assert not layer.bias.any()


def test_the_range_test_takes_the_steepest_rate_and_leaves_no_trace():
    assert steepest_rate(np.geomspace(1e-6, 1, 60), np.r_[np.full(30, 2.0), np.linspace(2, 0, 10), np.full(20, 9)]) == (
        pytest.approx(np.geomspace(1e-6, 1, 60)[37], rel=1)
    )
    features, labels = points()
    network = nn.Linear(12, 3)
    before = network.weight.detach().clone()
    data = [(torch.from_numpy(features).float(), torch.from_numpy(labels))]
    found = find_rate(
        network,
        lambda rate: [{"params": list(network.parameters()), "lr": rate, "weight_decay": 0.0}],
        Objective(),
        Descent("adamw"),
        data,
        [],
        seed=0,
        on_progress=lambda *_: None,
    )
    assert 1e-4 < found < 0.5
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_the_range_test_finds_no_rate_where_the_loss_never_falls(noise):
    grid = np.geomspace(1e-6, 1, 60)
    for seed in range(20):
        flat_then_up = np.r_[np.full(40, 1.0), np.linspace(1, 3, 20)] + np.random.default_rng(seed).normal(0, noise, 60)
        assert steepest_rate(grid, np.abs(flat_then_up)) is None
    assert steepest_rate(grid, np.array([1.0, 9.0])) is None
    assert steepest_rate(grid, np.linspace(1.0, 0.99, 60)) is None  # a percent is none


def test_the_range_test_is_not_misled_by_a_first_batch_that_is_hard():
    losses = np.r_[2.0, np.full(29, 1.0), np.linspace(1, 0.3, 10), np.full(20, 1.5)]
    assert 1e-4 < steepest_rate(np.geomspace(1e-6, 1, 60), losses) < 1e-1


def test_verdicts_name_what_the_figures_say():
    rising = [{"train_top1": value} for value in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8)]
    flat = [{"train_top1": 0.7}] * 8
    full, probe = FinetuneConfig(strategy="full"), FinetuneConfig(strategy="probe")
    assert verdict_of(0.8, 0.75, rising, full).kind == "unfinished"
    assert verdict_of(0.7, 0.69, flat, full).kind == "underfit"
    assert verdict_of(0.98, 0.95, flat, full).kind == "fits"
    overfit = verdict_of(0.99, 0.7, rising, full)
    assert overfit.kind == "overfit"
    assert overfit.text == (
        "overfit: 99.0% of training and 70.0% of validation pictures are right; more pictures help most, "
        "then --strategy lp-ft, --mix both, --l2-sp 0.01 or --dropout 0.3"
    )
    assert "--strategy lp-ft" in verdict_of(0.5, 0.5, flat, probe).text


def test_advice_that_was_taken_is_not_given_again():
    taken = FinetuneConfig(strategy="lp-ft", mix="both", l2_sp=0.01)
    assert verdict_of(0.99, 0.7, [], taken).text.endswith("more pictures help most, then --dropout 0.3")
    everything = FinetuneConfig(strategy="lp-ft", mix="both", l2_sp=0.01, dropout=0.3)
    assert verdict_of(0.99, 0.7, [], everything).text.endswith("more pictures help most")
    found = FinetuneConfig(lr="auto", augment="light")
    assert verdict_of(0.5, 0.5, [], found).text.endswith("try more --epochs or a larger backbone or --size")


def test_the_gain_has_an_interval_that_holds_it():
    rng = np.random.default_rng(1)
    ours, scratch = rng.random(300) < 0.9, rng.random(300) < 0.6
    found = gain(ours, scratch)
    low, high = found["interval"]
    assert found["gain"] == pytest.approx(ours.mean() - scratch.mean())
    assert low < found["gain"] < high
    spread = (ours.astype(float) - scratch).std() / 300**0.5
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.05)
    assert gain(ours, ours)["interval"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgdm"}, '--optimizer is "sgdm": it must be adamw or adam'),
        ({"schedule": "step:0"}, '--schedule is "step:0": it must be cosine'),
        ({"lr": "slow"}, '--lr is "slow": it must be a number or auto'),
        ({"strategy": "last"}, '--strategy is "last": it must be probe, last:N, gradual'),
        ({"strategy": "gradual", "epochs": 2}, "--strategy gradual needs at least 3 --epochs"),
        ({"strategy": "probe", "mix": "both"}, "--mix does nothing with --strategy probe"),
        ({"strategy": "probe", "teacher": "runs/big"}, "--teacher does nothing with --strategy probe"),
        ({"ema": 1.0}, "--ema is 1.0: it must be between 0.0 and 0.99999"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        FinetuneConfig(**settings)
