"""Classes that a device learns from a handful of pictures, with numpy alone.

The bundle brings embeddings of some of the pictures it was trained on. They tell how pictures of one class differ: in
the space in which those differences are equally large in all directions, a new picture belongs to the class whose mean
lies in its direction (a prototype, Snell et al. 2017; whitened by the within-class scatter, as in linear discriminant
analysis). Between the old classes the network decides as before. A new class wins where its prototype is nearer than
that of any old class by a margin which the old pictures themselves hardly ever reach, so that they are not lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.preprocess import Picture, decode, preprocess
from edgetl.spec import PreprocessSpec

__all__ = ["Known", "Learned", "fit_learned", "views"]

Array = NDArray[np.float32]

# Share of the mean variance that every direction has at least: of few pictures the scatter says little.
_SHRINKAGE = 0.3
_DIRECTIONS = 256  # in which pictures of one class differ most; the others are taken as equal
# Share of the old pictures that a new class may take from the others.
_TAKEN = 0.005
# Logits for a cosine of 1: where one picture alone tells nothing, and at the most.
_SHARPNESS = 30.0
_SHARPEST = 100.0
_FOLDS = 5
_EDGE = 0.075  # of a picture, that its middle leaves out on each side


@dataclass(frozen=True)
class _Space:
    """Where pictures of one class differ equally in all directions.

    Attributes:
        center: (D,), what is subtracted from an embedding of length 1.
        directions: (D, R), orthonormal.
        damping: (R,), the share that is taken off in each of them.
        old: (C, D), the old classes' prototypes, of length 1.
    """

    center: Array
    directions: Array
    damping: Array
    old: Array

    @classmethod
    def fitted(cls, known: Array, groups: NDArray[np.intp]) -> _Space:
        """Fits it to embeddings of length 1 (M, D) and their classes (M,), of each of which there is one."""
        classes = int(groups.max()) + 1
        means = np.stack([known[groups == c].mean(axis=0) for c in range(classes)])
        center = means.mean(axis=0)
        directions, damping = _scatter(known - means[groups], max(1, len(known) - classes))
        return cls(center, directions, damping, _unit(_damped(means - center, directions, damping)))

    def whitened(self, points: Array) -> Array:
        """Returns points (N, D) for embeddings of length 1, or their means."""
        return _damped(points - self.center, self.directions, self.damping)

    def leads(self, known: Array, means: Array) -> Array:
        """Returns by how much the cosine with each new class is above that with the nearest old one.

        Args:
            known: (N, D), of length 1.
            means: (K, D), of the new classes.

        Returns:
            (N, K).
        """
        points = _unit(self.whitened(known))
        nearest = (points @ self.old.T).max(axis=1, keepdims=True)
        return np.asarray(points @ _unit(self.whitened(means)).T - nearest, np.float32)


@dataclass(frozen=True)
class Known:
    """What the old classes' exemplars say, whatever will be learned.

    Attributes:
        space: Fitted to all of them.
        left_out: Some of the exemplars (n, D), of length 1, each time with a space that was fitted to the others: one's
            own scatter flatters.
    """

    space: _Space
    left_out: tuple[tuple[_Space, Array], ...]

    @classmethod
    def fitted(cls, exemplars: Array, counts: tuple[int, ...]) -> Known:
        """Fits it to embeddings (M, D), sorted by class, and how many of each class there are."""
        groups = np.repeat(np.arange(len(counts)), counts)
        known = _unit(exemplars)
        turn = np.concatenate([np.arange(count) for count in counts]) % _FOLDS
        turn[np.asarray(counts)[groups] == 1] = -1  # the only one of its class cannot be spared
        left_out = tuple(
            (_Space.fitted(known[turn != fold], groups[turn != fold]), known[turn == fold])
            for fold in range(_FOLDS)
            if (turn == fold).any()
        )
        return cls(_Space.fitted(known, groups), left_out)

    def leads(self, means: Array) -> Array:
        """Returns by how much exemplars (N,) are nearer to one of the new classes' means (K, D) than to any old one."""
        found = [space.leads(points, means).max(axis=1) for space, points in self.left_out]
        return np.concatenate(found or [np.zeros(1, np.float32)])


@dataclass(frozen=True)
class Learned:
    """Classes added to a model.

    Attributes:
        labels: K names.
        support: By name, the embeddings (n, D) of the pictures it was learned from.
        space: In which they are compared.
        means: (K, D), of embeddings of length 1.
        margin: By how much the cosine with a new prototype must be above that with the nearest old one.
        sharpness: What a cosine is worth in logits, at the model's temperature.
    """

    labels: tuple[str, ...]
    support: Mapping[str, Array]
    space: _Space
    means: Array
    margin: float
    sharpness: float

    def logits(self, embedding: Array, logits: Array, temperature: float = 1.0) -> Array:
        """Returns the logits of old and new classes.

        Args:
            embedding: (N, D).
            logits: (N, C), of the old classes.
            temperature: By which all will be divided.

        Returns:
            (N, C + K), float32; the first C are the old ones unchanged.
        """
        leads = self.space.leads(_unit(embedding), self.means)
        new = logits.max(axis=1, keepdims=True) + temperature * self.sharpness * (leads - self.margin)
        return np.hstack([logits, new.astype(np.float32)])


def views(picture: Picture, spec: PreprocessSpec) -> list[NDArray[np.uint8]]:
    """Returns a picture, its mirror image, and its middle, as the network's inputs.

    Raises:
        PictureError: It cannot be read.
    """
    image = decode(picture, spec)
    width, height = image.size
    x, y = round(width * _EDGE), round(height * _EDGE)
    whole = preprocess(image, spec)
    return [whole, np.ascontiguousarray(whole[:, ::-1]), preprocess(image.crop((x, y, width - x, height - y)), spec)]


def fit_learned(known: Known, support: Mapping[str, Array]) -> Learned:
    """Returns classes learned from embeddings.

    Args:
        known: Of the old classes.
        support: By name, embeddings (n, D) of each new class.
    """
    new = [_unit(points) for points in support.values()]
    means = np.stack([points.mean(axis=0) for points in new])
    leads_old = known.leads(means)
    margin = max(0.0, float(np.quantile(leads_old, 1 - _TAKEN, method="higher")))
    leads_new = np.concatenate([_leads_of_new(points, known.space) for points in new])
    sharpness = _sharpness(leads_old - margin, leads_new - margin)
    return Learned(tuple(support), dict(support), known.space, means, margin, sharpness)


def _unit(points: Array) -> Array:
    return np.asarray(points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12), np.float32)


def _damped(points: Array, directions: Array, damping: Array) -> Array:
    return np.asarray(points - ((points @ directions) * damping) @ directions.T, np.float32)


def _scatter(residuals: Array, freedom: int) -> tuple[Array, Array]:
    """Returns the directions (D, R) in which pictures of one class differ most, and what is taken off in each (R,)."""
    mean_variance = max(float(np.square(residuals).sum()) / freedom / residuals.shape[1], 1e-12)
    if len(residuals) < residuals.shape[1]:  # the smaller of the two products
        values, vectors = np.linalg.eigh(residuals @ residuals.T)
        kept = values > 1e-6 * max(values[-1], 1e-12)
        values, vectors = values[kept], residuals.T @ vectors[:, kept] / np.sqrt(values[kept])
    else:
        values, vectors = np.linalg.eigh(residuals.T @ residuals)
    values, vectors = values[-_DIRECTIONS:], vectors[:, -_DIRECTIONS:]
    floor = _SHRINKAGE * mean_variance
    damping = 1 - np.sqrt(floor / ((1 - _SHRINKAGE) * np.maximum(values, 0) / freedom + floor))
    return vectors.astype(np.float32), damping.astype(np.float32)


def _leads_of_new(points: Array, space: _Space) -> Array:
    """Returns by how much pictures of a new class are nearer to the others of it than to an old class (n,).

    Of one picture alone nothing is known: (0,).
    """
    if len(points) < 2:
        return np.zeros(0, np.float32)
    others = (points.sum(axis=0) - points) / (len(points) - 1)
    return np.diagonal(space.leads(points, others))


def _sharpness(old: NDArray[np.floating[Any]], new: NDArray[np.floating[Any]]) -> float:
    """Returns the factor that makes leads (beyond the margin) the likeliest logits of old against new."""
    if not len(new):
        return _SHARPNESS
    factors = np.geomspace(1, _SHARPEST, 41)
    losses = [np.logaddexp(0, f * old).mean() + np.logaddexp(0, -f * new).mean() for f in factors]
    return float(factors[int(np.argmin(losses))])
