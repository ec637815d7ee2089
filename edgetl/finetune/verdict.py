"""How a training went, in words, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.finetune.config import FinetuneConfig

__all__ = ["Verdict", "verdict_of"]

# Of top-1. Fewer than some hundred pictures say no finer.
_WIDE_GAP = 0.10
_LOW = 0.90
_STILL_RISING = 0.01


@dataclass(frozen=True)
class Verdict:
    """What the figures say.

    Attributes:
        kind: ``overfit``, ``underfit``, ``unfinished`` or ``fits``.
        text: One line, with the figures and what to try.
    """

    kind: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """Returns the JSON form."""
        return {"kind": self.kind, "text": self.text}


def verdict_of(
    train_top1: float, val_top1: float, rows: Sequence[Mapping[str, Any]], config: FinetuneConfig
) -> Verdict:
    """Tells overfitting from underfitting.

    Args:
        train_top1: On training pictures as a device sees them, without augmentation.
        val_top1: On pictures that were not trained on.
        rows: History of the last stage.
        config: What was asked for; advice that is taken already is not given.
    """
    figures = f"{train_top1:.1%} of training and {val_top1:.1%} of validation pictures are right"
    if train_top1 - val_top1 > _WIDE_GAP:
        advice = _listed(_hold_back(config))
        return Verdict("overfit", f"overfit: {figures}; more pictures help most{advice and f', then {advice}'}")
    if train_top1 < _LOW and _rises(rows):
        return Verdict(
            "unfinished", f"not trained to the end: {figures}, and it was still getting better; give more --epochs"
        )
    if train_top1 < _LOW:
        return Verdict("underfit", f"underfit: {figures}; {_let_go(config)}")
    return Verdict("fits", f"neither overfit nor underfit: {figures}")


def _hold_back(config: FinetuneConfig) -> list[str]:
    """Returns what keeps a network from learning its pictures by heart and was not asked for."""
    if config.strategy == "probe":
        known = [("--weight-decay 0.1", config.weight_decay >= 0.1), ("--dropout 0.3", config.dropout > 0)]
    else:
        known = [
            ("--strategy lp-ft", config.strategy != "full"),
            ("--mix both", config.mix != "none"),
            ("--l2-sp 0.01", config.l2_sp > 0),
            ("--dropout 0.3", config.dropout > 0),
        ]
    return [option for option, is_taken in known if not is_taken]


def _let_go(config: FinetuneConfig) -> str:
    if config.strategy == "probe":
        return (
            "the backbone's features do not tell the classes apart: try --strategy lp-ft, a larger backbone or --size"
        )
    known = [
        ("more --epochs", False),
        ("a higher --lr", config.lr == "auto"),
        ("--augment light", config.augment != "standard"),
        ("a larger backbone or --size", False),
    ]
    return f"try {_listed([option for option, is_taken in known if not is_taken])}"


def _listed(options: Sequence[str]) -> str:
    return " or ".join([*([", ".join(options[:-1])] if options[1:] else []), *options[-1:]])


def _rises(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Tells whether the accuracy on training pictures still grew in the last quarter of the epochs."""
    curve = [float(row["train_top1"]) for row in rows if "train_top1" in row]
    if len(curve) < 2:
        return False
    quarter = max(1, len(curve) // 4)
    return curve[-1] - max(curve[:-quarter]) > _STILL_RISING * quarter
