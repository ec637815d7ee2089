"""Settings of fine-tuning: the only home of their defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edgetl.errors import InputError

__all__ = ["LOGGERS", "FinetuneConfig", "parse_schedule", "parse_strategy"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": ("adamw", "adam", "sgd", "rmsprop", "adagrad"),
    "head_init": ("auto", "zero", "xavier", "he", "ridge"),
    "augment": ("none", "light", "standard"),
    "mix": ("none", "mixup", "cutmix", "both"),
    "imbalance": ("auto", "none", "weights", "sampling"),
    "batchnorm": ("frozen", "train"),
    "decode": ("full", "reduced"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}
LOGGERS = ("tensorboard", "mlflow", "wandb")
# Peak rates of the head that neither crawl nor diverge on pretrained backbones.
_RATES = {"adamw": 5e-4, "adam": 5e-4, "sgd": 5e-3, "rmsprop": 1e-4, "adagrad": 5e-3}


@dataclass(frozen=True)
class FinetuneConfig:
    """How a network is fine-tuned.

    Attributes:
        backbone: See `edgetl.backbones`.
        weights: ``default``, ``none``, or a file.
        head: ``linear``, ``mlp:W`` or ``flatten-mlp:W``.
        dropout: Before the last layer, 0 to 1.
        head_init: Of the last layer: ``zero``, ``xavier`` (Glorot), ``he``, or ``ridge``, the closed form of ridge
            regression on the features; ``auto`` is zero where a probe comes first, else torch's own.
        strategy: ``probe``, ``last:N``, ``gradual`` (unfreezes from the top), ``full`` or ``lp-ft``: probe, then full.
            Its probe of a linear head that begins as ``auto`` or ``ridge`` is solved for, not trained, and scaled down,
            so that the features are tuned as well.
        epochs: Passes over the training pictures; for ``probe``, passes over their features are 5 times as many.
        batch_size: Pictures per step, of all devices together.
        optimizer: ``adamw``, ``adam``, ``sgd``, ``rmsprop`` or ``adagrad``.
        momentum: Of sgd and rmsprop, 0 to 1.
        lr: Peak learning rate of the head; None takes the optimizer's own, ``auto`` a range test's.
        schedule: ``cosine``, ``constant``, ``step`` (a tenth after each third), ``step:N`` (a tenth every N epochs) or
            ``one-cycle``.
        warmup: Share of the steps in which the rate rises, 0 to 1; one-cycle has its own, 0.3.
        max_gradient_norm: Of all gradients together, while tuning; larger ones are scaled down to it. 0 clips nothing.
        layer_decay: Factor on the rate from each block to the one below it, 0 to 1; 1 is one rate for all.
        weight_decay: Of matrices; biases and normalization are left alone.
        l1: Of the loss: times the sum of absolute weights of matrices.
        l2: Of the loss: times half the sum of squared weights of matrices.
        l2_sp: Of the loss: times half the squared distance of the backbone from its pretrained weights; the backbone
            is then not pulled to zero by ``l2`` and ``weight_decay``, though still by ``l1`` (Li, Grandvalet and
            Davoine 2018).
        label_smoothing: 0 to 1.
        mix: ``mixup``, ``cutmix`` or ``both`` (one of them, by chance, at each step).
        imbalance: What to do about classes of very different sizes: ``weights`` in the loss, ``sampling`` of small
            classes more often, ``none``; ``auto`` decides by the sizes and says so.
        ema: Decay of a moving average of the weights, which is what is kept; 0 keeps the last weights themselves.
        teacher: A run whose answers the network learns beside the labels, or None.
        teacher_weight: Share of the loss that is the teacher's, 0 to 1.
        teacher_temperature: At which both answers are softened (Hinton, Vinyals and Dean 2015).
        batchnorm: ``frozen`` normalizes with the pretrained statistics while tuning, as a device will, and trains
            scales and shifts alone; ``train`` follows the batches. What was never trained follows them anyway.
        augment: ``none``, ``light`` (crop, colour) or ``standard`` (stronger crop, mirror, colour).
        views: With ``last:N``: so many augmented views of each picture go through the frozen blocks, once, and are
            kept on disk; 0 runs the frozen blocks at each step.
        select_fraction: Share of the training pictures reserved to choose the best epoch; 0 keeps the last.
        patience: With ``select_fraction``: stop after so many epochs without a better one; 0 never stops.
        size: (height, width) of the input; None takes the weights' own.
        mean: Per channel; None takes the weights' own.
        std: Per channel; None takes the weights' own.
        decode: ``reduced`` lets the JPEG decoder halve pictures while they stay twice as large as the input, in
            training, validation and on the device alike; ``full`` never.
        precision: ``fp32``, ``bf16`` or ``fp16`` (mixed); ``auto`` is fp32 on a CPU, bf16 or fp16 on a GPU.
        compile: Whether torch.compile makes the network faster, after a minute of compiling.
        devices: GPUs, or processes where there is none, on each node.
        nodes: Machines.
        seed: Of everything random.
        robustness: Whether the finished network is also judged on corrupted pictures.
        compare_scratch: Whether the same network is also trained from random weights, on 1, 5, 10 and all pictures of
            each class, to see what the transfer bought.
        loggers: Where the history is told beside ``history.csv``: ``tensorboard``, ``mlflow``, ``wandb``.
        workers: Processes that decode and augment; 0 does it in the main process, None takes 0 on a CPU, and on a GPU
            as many as there are cores to spare, at most 8.
    """

    backbone: str = "timm/mobilenetv4_conv_small"
    weights: str = "default"
    head: str = "linear"
    dropout: float = 0.0
    head_init: str = "auto"
    strategy: str = "lp-ft"
    epochs: int = 10
    batch_size: int = 32
    optimizer: str = "adamw"
    momentum: float = 0.9
    lr: float | str | None = None
    schedule: str = "cosine"
    warmup: float = 0.1
    # Frozen BatchNorm bounds gradients no longer: SGD at 0.003 diverged without this.
    max_gradient_norm: float = 1.0
    layer_decay: float = 0.85
    weight_decay: float = 0.02
    l1: float = 0.0
    l2: float = 0.0
    l2_sp: float = 0.0
    label_smoothing: float = 0.1
    mix: str = "none"
    imbalance: str = "auto"
    ema: float = 0.0
    teacher: str | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0
    batchnorm: str = "frozen"
    augment: str = "standard"
    views: int = 4
    select_fraction: float = 0.0
    patience: int = 0
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    decode: str = "reduced"
    precision: str = "auto"
    compile: bool = False
    devices: int = 1
    nodes: int = 1
    seed: int = 0
    robustness: bool = False
    compare_scratch: bool = False
    loggers: tuple[str, ...] = ()
    workers: int | None = None

    def __post_init__(self) -> None:
        kind, _ = parse_strategy(self.strategy)
        parse_schedule(self.schedule)
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{_option(name)} is {value}: it must be between {low} and {high}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f'{_option(name)} is "{getattr(self, name)}": it must be {" or ".join(choices)}')
        for name in self.loggers:
            if name not in LOGGERS:
                raise InputError(f'--logger is "{name}": it must be {" or ".join(LOGGERS)}')
        if isinstance(self.lr, str) and self.lr != "auto":
            raise InputError(f'--lr is "{self.lr}": it must be a number or auto')
        if isinstance(self.lr, int | float) and not 0 < self.lr < 100:
            raise InputError(f"--lr is {self.lr}: it must be greater than 0 and below 100")
        if self.patience and not self.select_fraction:
            raise InputError(
                "--patience needs --select-fraction: epochs are chosen on pictures cut from train, "
                "never on the ones that are reported"
            )
        if kind == "gradual" and self.epochs < 3:
            raise InputError("--strategy gradual needs at least 3 --epochs: the head's own, and some to unfreeze in")
        if kind == "probe":
            self._check_probe()
        processes = self.devices * self.nodes
        if self.batch_size % processes:
            raise InputError(f"--batch-size is {self.batch_size}: it must be a multiple of the {processes} devices")
        if processes > 1 and kind == "gradual":
            raise InputError("--strategy gradual runs on one device: leave out --devices and --nodes")

    def _check_probe(self) -> None:
        """A probe sees features: what needs pictures or a backbone that moves would silently do nothing."""
        for name, idle in (("teacher", None), ("mix", "none"), ("l2_sp", 0.0), ("ema", 0.0)):
            if getattr(self, name) != idle:
                raise InputError(
                    f"{_option(name)} does nothing with --strategy probe, which trains the head on features; leave it "
                    "out, or take last:N, gradual, full or lp-ft"
                )

    @property
    def peak_lr(self) -> float:
        """The learning rate in force; a range test has to be made before it is asked for."""
        if isinstance(self.lr, str):
            raise InputError("--lr auto was not resolved")
        return self.lr if self.lr is not None else _RATES[self.optimizer]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: object, origin: str = "settings") -> FinetuneConfig:
        """Reads the JSON form, absent fields taking their defaults.

        Raises:
            InputError: A field is unknown or its value unusable.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        if not isinstance(data, dict):
            raise InputError(f"{origin}: must hold names and values, not {type(data).__name__}")
        for name, value in data.items():
            if name not in known:
                raise InputError(f'{origin}: unknown setting "{name}"; known are {", ".join(sorted(known))}')
            if not _has_type(value, known[name].default, name):
                raise InputError(f"{origin}: {name} is {value!r:.60}, that is not of the right type")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**fields)


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("dropout", 0.0, 0.95),
    ("epochs", 1, 100_000),
    ("batch_size", 1, 65_536),
    ("momentum", 0.0, 0.999),
    ("max_gradient_norm", 0.0, 1e6),
    ("layer_decay", 0.01, 1.0),
    ("weight_decay", 0.0, 10.0),
    ("l1", 0.0, 10.0),
    ("l2", 0.0, 10.0),
    ("l2_sp", 0.0, 10.0),
    ("label_smoothing", 0.0, 0.9),
    ("ema", 0.0, 0.99999),
    ("teacher_weight", 0.0, 1.0),
    ("teacher_temperature", 0.1, 100.0),
    ("warmup", 0.0, 0.9),
    ("views", 0, 1000),
    ("select_fraction", 0.0, 0.5),
    ("patience", 0, 100_000),
    ("devices", 1, 1024),
    ("nodes", 1, 1024),
    ("seed", 0, 2**31 - 1),
    ("workers", 0, 256),
)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _has_type(value: object, default: object, name: str) -> bool:
    if name == "lr":
        return value is None or value == "auto" or _is_number(value)
    if name in ("size", "mean", "std"):
        return value is None or (isinstance(value, list | tuple) and all(map(_is_number, value)))
    if name == "loggers":
        return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
    if name == "teacher":
        return value is None or isinstance(value, str)
    if name == "workers":
        return value is None or (isinstance(value, int) and not isinstance(value, bool))
    if isinstance(default, float):
        return _is_number(value)
    return isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_strategy(strategy: str) -> tuple[str, int]:
    """Parses ``probe``, ``last:N``, ``gradual``, ``full`` or ``lp-ft`` into (kind, N); N is 0 but for ``last``.

    Raises:
        InputError: The text is none of these.
    """
    kind, _, count = strategy.partition(":")
    if strategy in ("probe", "gradual", "full", "lp-ft"):
        return kind, 0
    if kind == "last" and count.isdecimal() and int(count) > 0:
        return kind, int(count)
    raise InputError(
        f'--strategy is "{strategy}": it must be probe, last:N, gradual, full or lp-ft, N a number of blocks'
    )


def parse_schedule(schedule: str) -> tuple[str, int]:
    """Parses ``cosine``, ``constant``, ``one-cycle``, ``step`` or ``step:N`` into (kind, N); N is 0 where not given.

    Raises:
        InputError: The text is none of these.
    """
    kind, _, epochs = schedule.partition(":")
    if schedule in ("cosine", "constant", "one-cycle", "step"):
        return kind, 0
    if kind == "step" and epochs.isdecimal() and int(epochs) > 0:
        return kind, int(epochs)
    raise InputError(
        f'--schedule is "{schedule}": it must be cosine, constant, one-cycle, step or step:N, N a number of epochs'
    )
