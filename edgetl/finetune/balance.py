"""What is done about classes of very different sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Balance", "balance_of"]

_UNEVEN, _VERY_UNEVEN = 2.0, 10.0


@dataclass(frozen=True)
class Balance:
    """How small classes are made to count.

    Attributes:
        kind: ``none``, ``weights`` or ``sampling``.
        reason: In words, or empty where there is nothing to say.
        class_weights: (classes,), of mean 1 over the training pictures, or None.
        shares: (pictures,), how likely each is to be drawn, or None.
    """

    kind: str
    reason: str = ""
    class_weights: NDArray[np.float64] | None = None
    shares: NDArray[np.float64] | None = None

    def weights_of(self, labels: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Returns how much each training picture counts, (pictures,), whichever way it is; None for all alike."""
        return self.shares if self.class_weights is None else self.class_weights[labels]


def balance_of(labels: Sequence[int], classes: Sequence[str], asked: str) -> Balance:
    """Chooses, and makes what it takes.

    From twice as many pictures in the largest class as in the smallest, the loss is weighted; from ten times, where
    single pictures would weigh so much that steps jump about, small classes are drawn more often instead.

    Args:
        labels: Of the training pictures; every class occurs.
        classes: Their names.
        asked: ``auto``, ``none``, ``weights`` or ``sampling``.
    """
    counts = np.bincount(np.asarray(labels, np.int64), minlength=len(classes)).astype(np.float64)
    ratio = float(counts.max() / max(1.0, counts.min()))
    kind, reason = asked, ""
    if asked == "auto":
        kind = "none" if ratio < _UNEVEN else "weights" if ratio < _VERY_UNEVEN else "sampling"
        if kind != "none":
            large, small = classes[int(counts.argmax())], classes[int(counts.argmin())]
            how = "the loss is weighted" if kind == "weights" else "small classes are drawn more often"
            reason = (
                f'"{large}" has {counts.max():.0f} training pictures, "{small}" has {counts.min():.0f}: {how} '
                f"(--imbalance {kind}; --imbalance none leaves it)"
            )
    if kind == "none":
        return Balance(kind)
    each = 1.0 / np.maximum(counts, 1.0)
    of_pictures = each[np.asarray(labels)]
    if kind == "weights":
        return Balance(kind, reason, class_weights=each / of_pictures.mean())
    return Balance(kind, reason, shares=of_pictures / of_pictures.sum())
