"""What a confidence is worth: temperature, and the threshold below which a picture shows none of the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.metrics import expected_calibration_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    _Floats = NDArray[np.floating[Any]]
    _Ints = NDArray[np.integer[Any]]

__all__ = [
    "confidence_report",
    "fit_temperature",
    "left_out",
    "log_odds",
    "passes",
    "rejection_report",
    "threshold_for",
]


_COLDEST, _WARMEST = 0.05, 20.0
_STEPS = 60  # of golden section: the temperature is exact to eleven digits
_GOLDEN = (5**0.5 - 1) / 2


def fit_temperature(logits: _Floats, labels: _Ints) -> float:
    """Returns the temperature that makes the labels most likely (Guo et al. 2017, section 4.2).

    One picture's worth of doubt is added, ``log(temperature) ** 2``: where all are right, sharper is always likelier,
    and of few pictures little is known.

    Args:
        logits: (N, C).
        labels: (N,), class indices.
    """

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) * np.exp(-log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        likelihood = scaled[np.arange(len(labels)), labels] - np.log(np.exp(scaled).sum(axis=1))
        return float(log_temperature**2 - likelihood.sum())

    low, high = np.log(_COLDEST), np.log(_WARMEST)
    for _ in range(_STEPS):
        span = _GOLDEN * (high - low)
        if loss(high - span) < loss(low + span):
            high = low + span
        else:
            low = high - span
    return float(np.exp((low + high) / 2))


def confidence_report(logits: _Floats, labels: _Ints) -> dict[str, Any]:
    """Returns ``temperature``, ``ece_before`` and ``ece_after``.

    The error after is honest: each half of the pictures is scaled by the temperature of the other half.

    Args:
        logits: (N, C).
        labels: (N,), class indices.
    """
    half = _half(labels)
    scaled = logits.astype(np.float64)
    if len(labels) > 1:
        for part in (half, ~half):
            scaled[part] /= fit_temperature(logits[~part], labels[~part])
    return {
        "temperature": fit_temperature(logits, labels),
        "ece_before": expected_calibration_error(logits, labels),
        "ece_after": expected_calibration_error(scaled, labels) if len(labels) > 1 else None,
    }


def left_out(logits: _Floats, labels: _Ints) -> NDArray[np.float32]:
    """Returns the logits (N, C - 1) that pictures get where their own class is not known.

    Args:
        logits: (N, C), C above 2: of one class alone everything is certain.
        labels: (N,), class indices.
    """
    others = np.arange(logits.shape[1])[None] != labels[:, None]
    return np.asarray(logits[others].reshape(len(logits), -1), np.float32)


def log_odds(logits: _Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Returns the logarithm of the odds of each row's best class against all others, (N,).

    It grows with confidence, ``1 / (1 + exp(-log_odds))``, and goes on growing where that is 1 in any float.

    Args:
        logits: (N, C), finite, C above 1.
        temperature: Of the model.
    """
    scaled = logits.astype(np.float64) / temperature
    rows, best = np.arange(len(scaled)), scaled.argmax(axis=1)
    first = scaled[rows, best]
    scaled[rows, best] = -np.inf
    second = scaled.max(axis=1)
    return np.asarray(first - second - np.log(np.exp(scaled - second[:, None]).sum(axis=1)))


def threshold_for(unknown: _Floats, temperature: float, false_accept: float) -> float | None:
    """Returns the log-odds that at most a share of foreign pictures reaches; None where all of them may.

    Args:
        unknown: Logits (N, C) of pictures that show none of the classes.
        temperature: Of the model.
        false_accept: The share, a fraction.
    """
    odds = np.sort(log_odds(unknown, temperature))[::-1]
    allowed = int(false_accept * len(odds) + 1e-9)
    return None if allowed >= len(odds) else float(np.nextafter(odds[allowed], np.inf))


def passes(logits: _Floats, temperature: float, min_log_odds: float | None) -> NDArray[np.bool_]:
    """Returns for each row of logits (N, C) whether it shows one of the classes, (N,)."""
    if min_log_odds is None:
        return np.ones(len(logits), bool)
    return log_odds(logits, temperature) >= min_log_odds


def rejection_report(logits: _Floats, labels: _Ints, unknown: _Floats | None, false_accept: float) -> dict[str, Any]:
    """Returns the threshold that rejects foreign pictures, and what it brings and costs.

    The rates are honest: each half of the pictures is judged by the temperature and the threshold of the other half.

    Args:
        logits: (N, C).
        labels: (N,), class indices.
        unknown: Logits (M, C) of pictures that show none of the classes; None lets each class play that, left out in
            turn.
        false_accept: Share of them that may pass, a fraction.

    Returns:
        ``min_log_odds`` (None rejects nothing), the ``confidence`` that is the same, ``false_accept`` as asked for, how
        many foreign ``pictures`` there were; and of the halves ``false_accept_measured``, ``right_and_rejected`` and
        ``wrong_and_rejected`` (shares of the pictures of the classes), None where there is but one picture.
    """
    half = _half(labels)
    own = [(logits[part], labels[part]) for part in (half, ~half)]
    foreign = [left_out(*pair) for pair in own] if unknown is None else [unknown[::2], unknown[1::2]]
    limit = threshold_for(np.concatenate(foreign), fit_temperature(logits, labels), false_accept)
    passed, right, sure = [], [], []
    for mine, other in ((0, 1), (1, 0)):
        if not len(foreign[other]) or not len(own[other][1]):
            continue
        temperature = fit_temperature(*own[other])
        least = threshold_for(foreign[other], temperature, false_accept)
        passed.append(passes(foreign[mine], temperature, least))
        sure.append(passes(own[mine][0], temperature, least))
        right.append(own[mine][0].argmax(axis=1) == own[mine][1])
    was_right, was_sure = (np.concatenate(found or [np.zeros(0, bool)]) for found in (right, sure))
    return {
        "false_accept": false_accept,
        "false_accept_measured": _share(np.concatenate(passed or [np.zeros(0, bool)])),
        "pictures": sum(map(len, foreign)),
        "min_log_odds": limit,
        "confidence": 0.0 if limit is None else float(1 / (1 + np.exp(-np.clip(limit, -700, 700)))),
        "right_and_rejected": _share(was_right & ~was_sure),
        "wrong_and_rejected": _share(~was_right & ~was_sure),
    }


def _share(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _half(labels: _Ints) -> NDArray[np.bool_]:
    """Returns which pictures (N,) are of the one half; both halves have of every class."""
    half = np.empty(len(labels), bool)
    half[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % 2 == 0
    return half
