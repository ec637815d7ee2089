"""Settings of fine-tuning: the only home of their defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgetl.errors import InputError

__all__ = ["FinetuneConfig", "parse_strategy"]

Optimizer = Literal["adamw", "sgd"]
Augment = Literal["none", "light", "standard"]
BatchNorm = Literal["frozen", "train"]


@dataclass(frozen=True)
class FinetuneConfig:
    """How a network is fine-tuned.

    Attributes:
        backbone: See `edgetl.backbones`.
        weights: ``default``, ``none``, or a file.
        head: ``linear``, ``mlp:W`` or ``flatten-mlp:W``.
        dropout: Before the last layer, 0 to 1.
        strategy: ``probe``, ``last:N``, ``full`` or ``lp-ft`` (probe, then full).
        epochs: Passes over the training pictures; for ``probe``, passes over their features are 5 times as many.
        batch_size: Pictures per step.
        optimizer: ``adamw`` or ``sgd`` (momentum 0.9).
        lr: Peak learning rate of the head; None takes 5e-4 for adamw and 5e-3 for sgd.
        layer_decay: Factor on the rate from each block to the one below it, 0 to 1; 1 is one rate for all.
        weight_decay: Of matrices; biases and normalization are left alone.
        label_smoothing: 0 to 1.
        batchnorm: ``frozen`` normalizes with the pretrained statistics while tuning, as a device will, and trains
            scales and shifts alone; ``train`` follows the batches. What was never trained follows them anyway.
        warmup: Share of the steps in which the rate rises, 0 to 1; it then falls by a cosine to 0.
        augment: ``none``, ``light`` (crop, colour) or ``standard`` (stronger crop, mirror, colour).
        select_fraction: Share of the training pictures reserved to choose the best epoch; 0 keeps the last.
        patience: With ``select_fraction``: stop after so many epochs without a better one; 0 never stops.
        size: (height, width) of the input; None takes the weights' own.
        mean: Per channel; None takes the weights' own.
        std: Per channel; None takes the weights' own.
        seed: Of everything random.
        workers: Processes that decode and augment; 0 does it in the main process.
    """

    backbone: str = "timm/mobilenetv4_conv_small"
    weights: str = "default"
    head: str = "linear"
    dropout: float = 0.0
    strategy: str = "lp-ft"
    epochs: int = 10
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float | None = None
    layer_decay: float = 0.85
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    batchnorm: str = "frozen"
    warmup: float = 0.1
    augment: str = "standard"
    select_fraction: float = 0.0
    patience: int = 0
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        parse_strategy(self.strategy)
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{_option(name)} is {value}: it must be between {low} and {high}")
        for name, choices in (
            ("optimizer", get_args(Optimizer)),
            ("augment", get_args(Augment)),
            ("batchnorm", get_args(BatchNorm)),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f'{_option(name)} is "{getattr(self, name)}": it must be {" or ".join(choices)}')
        if self.lr is not None and not 0 < self.lr < 100:
            raise InputError(f"--lr is {self.lr}: it must be greater than 0 and below 100")
        if self.patience and not self.select_fraction:
            raise InputError(
                "--patience needs --select-fraction: epochs are chosen on pictures cut from train, "
                "never on the ones that are reported"
            )

    @property
    def peak_lr(self) -> float:
        """The learning rate in force."""
        return self.lr if self.lr is not None else {"adamw": 5e-4, "sgd": 5e-3}[self.optimizer]

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
    ("layer_decay", 0.01, 1.0),
    ("weight_decay", 0.0, 10.0),
    ("label_smoothing", 0.0, 0.9),
    ("warmup", 0.0, 0.9),
    ("select_fraction", 0.0, 0.5),
    ("patience", 0, 100_000),
    ("seed", 0, 2**31 - 1),
    ("workers", 0, 256),
)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _has_type(value: object, default: object, name: str) -> bool:
    if name == "lr":
        return value is None or _is_number(value)
    if name in ("size", "mean", "std"):
        return value is None or (isinstance(value, list | tuple) and all(map(_is_number, value)))
    if isinstance(default, float):
        return _is_number(value)
    return isinstance(value, type(default)) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_strategy(strategy: str) -> tuple[str, int]:
    """Parses ``probe``, ``last:N``, ``full`` or ``lp-ft`` into (kind, N); N is 0 but for ``last``.

    Raises:
        InputError: The text is none of these.
    """
    kind, _, count = strategy.partition(":")
    if strategy in ("probe", "full", "lp-ft"):
        return kind, 0
    if kind == "last" and count.isdecimal() and int(count) > 0:
        return kind, int(count)
    raise InputError(f'--strategy is "{strategy}": it must be probe, last:N, full or lp-ft, N a number of blocks')
