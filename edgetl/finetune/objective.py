"""What training makes small: L + lambda R, the error on the labels and penalties on the weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from edgetl.backbones import Network

__all__ = ["Mixer", "Objective", "Penalty", "Teacher", "logits_of"]


def logits_of(network: nn.Module, inputs: Tensor) -> Tensor:
    """Returns float32 logits of a network that answers (logits, ...) or logits."""
    answer = network(inputs)
    logits: Tensor = answer[0] if isinstance(answer, tuple) else answer
    return logits.float()


class Penalty:
    """R: sums over the weights of matrices, each with its factor.

    Args:
        free: Parameters that are pulled to zero; those that are bound too, by their absolute values alone.
        bound: Parameters that are pulled to where they are now (L2-SP: Li, Grandvalet and Davoine 2018, eq. 3).
        l1: Factor of the sum of absolute values of the free ones.
        l2: Factor of half the sum of squares of those free ones that are not bound.
        l2_sp: Factor of half the sum of squared distances of the bound ones; at 0 none is bound.
    """

    def __init__(
        self, free: Iterable[nn.Parameter], bound: Iterable[nn.Parameter] = (), *, l1: float, l2: float, l2_sp: float
    ) -> None:
        self._bound = [(p, p.detach().clone()) for p in bound if p.ndim > 1] if l2_sp else []
        held = {id(p) for p, _ in self._bound}
        pulled = [(p, 0.0 if id(p) in held else l2) for p in free if p.ndim > 1]
        self._free = [(p, factor) for p, factor in pulled if l1 or factor]
        self._factors = l1, l2_sp

    def __call__(self) -> Tensor | float:
        """Returns R of the parameters that are being trained now."""
        l1, l2_sp = self._factors
        total: Tensor | float = 0.0
        for parameter, l2 in self._free:
            if parameter.requires_grad:
                total = total + l1 * parameter.abs().sum() + 0.5 * l2 * parameter.square().sum()
        for place, (parameter, start) in enumerate(self._bound):
            if parameter.requires_grad:
                if start.device != parameter.device:
                    self._bound[place] = parameter, (start := start.to(parameter.device))
                total = total + 0.5 * l2_sp * (parameter - start).square().sum()
        return total


class Mixer:
    """MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch with itself, by torchvision.

    Args:
        kind: ``mixup``, ``cutmix`` or ``both``: one of them at each step, by chance.
        classes: Number of classes.
    """

    def __init__(self, kind: str, classes: int) -> None:
        mixup, cutmix = v2.MixUp(alpha=0.2, num_classes=classes), v2.CutMix(num_classes=classes)
        self._mix = {"mixup": mixup, "cutmix": cutmix, "both": v2.RandomChoice([mixup, cutmix])}[kind]

    def __call__(self, pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes (N, H, W, C) and (N,) to float32 pictures and (N, classes) shares."""
        mixed, shares = self._mix(pictures.permute(0, 3, 1, 2).float(), labels)
        return mixed.permute(0, 2, 3, 1), shares


class Teacher:
    """A finished network whose answers are learned beside the labels (Hinton, Vinyals and Dean 2015, section 2).

    Args:
        network: In eval mode; it sees the student's pictures, resized where its input has another size.
        size: (height, width) of its input.
        order: For each of the student's classes, the teacher's output.
        weight: Share of the loss, 0 to 1.
        temperature: At which both are softened.
    """

    def __init__(
        self, network: Network, size: tuple[int, int], order: list[int], *, weight: float, temperature: float
    ) -> None:
        self._network = network.eval().requires_grad_(False)
        self._size = size
        self._order = order
        self.weight = weight
        self._temperature = temperature

    def loss(self, logits: Tensor, pictures: Tensor) -> Tensor:
        """Returns the divergence of the student's answers from the teacher's, times the temperature squared."""
        self._network.to(pictures.device)
        with torch.no_grad():
            if tuple(pictures.shape[1:3]) != self._size:
                planes = pictures.permute(0, 3, 1, 2).float()
                planes = F.interpolate(planes, self._size, mode="bilinear", antialias=True)
                pictures = planes.permute(0, 2, 3, 1)
            wanted = logits_of(self._network, pictures)[:, self._order]
        t = self._temperature
        divergence = F.kl_div(
            F.log_softmax(logits / t, 1), F.log_softmax(wanted / t, 1), reduction="batchmean", log_target=True
        )
        return divergence * t * t


@dataclass
class Objective:
    """The loss of a batch.

    Attributes:
        label_smoothing: 0 to 1.
        class_weights: (classes,), or None for equal ones.
        mixer: What mixes pictures, or None.
        penalty: On weights, or None.
        teacher: Whose answers count too, or None.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    mixer: Mixer | None = None
    penalty: Penalty | None = None
    teacher: Teacher | None = None

    def __call__(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss, and how many of the batch were answered rightly (of mixed ones: the larger part)."""
        targets = labels
        if self.mixer is not None and len(labels) > 1:
            inputs, targets = self.mixer(inputs, labels)
        logits = logits_of(network, inputs)
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        loss = F.cross_entropy(logits, targets, weight=weights, label_smoothing=self.label_smoothing)
        if self.teacher is not None:
            share = self.teacher.weight
            loss = (1 - share) * loss + share * self.teacher.loss(logits, inputs)
        if self.penalty is not None:
            loss = loss + self.penalty()
        truth = targets.argmax(1) if targets.ndim > 1 else targets
        return loss, (logits.detach().argmax(1) == truth).sum()
