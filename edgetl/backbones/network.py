"""The networks that edgetl trains and exports: normalization inside, uint8 pictures in."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgetl.errors import BackboneError, InputError
from edgetl.spec import PreprocessSpec

__all__ = [
    "Block",
    "Head",
    "Network",
    "Normalize",
    "OriginalNetwork",
    "blocks",
    "check_head",
    "last_linear",
    "reset_weights",
    "unfriendly",
    "units_below",
]


class Normalize(nn.Module):
    """uint8 (N, H, W, C) to float32 (N, C, H, W): ``(pixel * scale - mean) / std``.

    The scale is folded into mean and std, so the graph has one Sub and one Div. The result keeps the
    pictures' channels-last memory layout, which CPU convolutions like best.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: PreprocessSpec) -> None:
        super().__init__()
        shape = (1, spec.channels, 1, 1)
        mean, std = (torch.tensor(v, dtype=torch.float64) / spec.scale for v in (spec.mean, spec.std))
        self.register_buffer("mean", mean.float().reshape(shape), persistent=False)
        self.register_buffer("std", std.float().reshape(shape), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Casts before it transposes: TensorRT rejects a transposed uint8."""
        return (pictures.to(self.mean.dtype).permute(0, 3, 1, 2) - self.mean) / self.std


def check_head(head: str) -> tuple[str, int]:
    """Parses ``linear``, ``mlp:W`` or ``flatten-mlp:W`` into (kind, W); W is 0 for linear.

    Raises:
        InputError: The text is none of these.
    """
    kind, _, width = head.partition(":")
    if head == "linear":
        return kind, 0
    if kind in ("mlp", "flatten-mlp") and width.isdecimal() and 1 <= int(width) <= 65536:
        return kind, int(width)
    raise InputError(f'--head is "{head}": it must be linear, mlp:W or flatten-mlp:W, W a number of units')


class Head(nn.Module):
    """A classifier that every engine runs well: pooling, Gemm and ReLU, nothing else.

    Args:
        head: ``linear`` (pool, classify), ``mlp:W`` (pool, W units, ReLU, classify) or ``flatten-mlp:W``
            (no pooling).
        feature_shape: (C, h, w) of the feature map.
        classes: Number of logits.
        dropout: Probability, applied before the last layer while training.
    """

    def __init__(self, head: str, feature_shape: tuple[int, int, int], classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        kind, width = check_head(head)
        channels, height, columns = feature_shape
        inputs = channels * height * columns if kind == "flatten-mlp" else channels
        self.pool = nn.Identity() if kind == "flatten-mlp" else nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Sequential(nn.Linear(inputs, width), nn.ReLU()) if width else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width or inputs, classes)

    def embed(self, features: Tensor) -> Tensor:
        """Returns what the last layer sees, (N, D), for a feature map (N, C, h, w)."""
        embedding: Tensor = self.hidden(torch.flatten(self.pool(features), 1))
        return embedding

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (logits, embedding)."""
        embedding = self.embed(features)
        return self.classifier(self.dropout(embedding)), embedding


class Network(nn.Module):
    """Normalization, backbone, head: what is trained, exported and shipped."""

    def __init__(self, preprocess: PreprocessSpec, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.normalize = Normalize(preprocess)
        self.backbone = backbone
        self.head = head

    def features(self, pictures: Tensor) -> Tensor:
        """Returns the feature map (N, C, h, w) of uint8 pictures (N, H, W, C)."""
        features: Tensor = self.backbone(self.normalize(pictures))
        return features

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (logits (N, classes), embedding (N, D)) of uint8 pictures (N, H, W, C)."""
        logits, embedding = self.head(self.features(pictures))
        return logits, embedding


class OriginalNetwork(nn.Module):
    """A pretrained classifier with its own head, as its authors published it.

    Its last linear layer is taken out and applied here, so that its input is the embedding.

    Raises:
        BackboneError: The model has no linear layer.
    """

    def __init__(self, preprocess: PreprocessSpec, full: nn.Module) -> None:
        super().__init__()
        name, linear = last_linear(full)
        _replace(full, name, nn.Identity())
        self.normalize = Normalize(preprocess)
        self.body = full
        self.classifier = linear
        self._place = name

    def reassembled(self) -> nn.Module:
        """Returns a copy of the classifier as its authors built it, its last layer back in place."""
        full = copy.deepcopy(self.body)
        _replace(full, self._place, copy.deepcopy(self.classifier))
        return full

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (logits (N, classes), embedding (N, D)) of uint8 pictures (N, H, W, C)."""
        embedding = torch.flatten(self.body(self.normalize(pictures)), 1)
        return self.classifier(embedding), embedding


def last_linear(module: nn.Module) -> tuple[str, nn.Linear]:
    """Returns the name and the last linear layer in registration order.

    Raises:
        BackboneError: There is none.
    """
    for name, child in reversed(list(module.named_modules())):
        if isinstance(child, nn.Linear) and "aux" not in name.lower():
            return name, child
    raise BackboneError(f"{type(module).__name__} has no linear layer, so it has no classifier head to take off")


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


@dataclass(frozen=True)
class Block:
    """A unit of depth for freezing and learning rates.

    Attributes:
        name: Path of its first module in the backbone.
        modules: What belongs to it; a normalization follows the convolution before it.
    """

    name: str
    modules: tuple[nn.Module, ...]

    def parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of all its modules."""
        return [p for module in self.modules for p in module.parameters()]


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks(backbone: nn.Module) -> list[Block]:
    """Returns the backbone's blocks, from the input to the feature map.

    Plain containers are opened, everything else that has parameters is one block: a residual block, an
    inverted bottleneck, or a single convolution with the normalization behind it. Single convolutions in a row, with
    no pooling or stride between them, are one block, as in VGG.
    """
    found: list[Block] = []
    chained = False  # the last block is of single convolutions, and no pooling has followed
    for name, module in _units(backbone, ""):
        parameters = list(module.parameters())
        if not parameters:
            chained = chained and "pool" not in type(module).__name__.lower()
            continue
        single = isinstance(module, nn.Conv2d)
        joins = chained and isinstance(module, nn.Conv2d) and max(module.stride) == 1
        if found and (all(p.ndim <= 1 for p in parameters) or joins):
            found[-1] = Block(found[-1].name, (*found[-1].modules, module))
        else:
            found.append(Block(name, (module,)))
            chained = single
    return found


def units_below(backbone: nn.Module, count: int) -> list[tuple[str, nn.Module]]:
    """Returns (path, module) of all that comes before the block after the first ``count``, with or without weights."""
    entry = blocks(backbone)[count].modules[0]
    units = _units(backbone, "")
    place = next(i for i, (_, module) in enumerate(units) if module is entry)
    return units[:place]


def _units(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    units = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if type(child) in _CONTAINERS or getattr(child, "is_container", False):
            units += _units(child, f"{path}.")
        else:
            units.append((path, child))
    return units


def reset_weights(module: nn.Module) -> list[str]:
    """Gives every layer that knows how to begin new random weights, by its own kind's rule.

    Returns:
        Names of the parameters that no layer began anew, like a class token; they hold no number afterwards.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(math.nan)
    for child in reversed(list(module.modules())):  # a layer's own rule may go beyond those of the layers in it
        for name in ("reset_parameters", "_reset_parameters"):  # the latter is MultiheadAttention's
            reset = getattr(child, name, None)
            if callable(reset):
                reset()
                break
    return [name for name, parameter in module.named_parameters() if parameter.isnan().any()]


def unfriendly(module: nn.Module) -> list[str]:
    """Names what makes a backbone hard to quantize: squeeze-excite and activations that INT8 kernels do not fuse."""
    kinds = [type(child).__name__ for child in module.modules()]
    excite = sum("squeezeexc" in kind.lower() or kind in ("SEModule", "EffectiveSEModule") for kind in kinds)
    smooth = sum(kind.lower().replace("_", "") in ("hardswish", "silu", "swish", "gelu", "gelutanh") for kind in kinds)
    advice = "INT8 will be slower or less accurate than with a plain ReLU network"
    found = []
    if excite:
        found.append(f"{excite} squeeze-excite blocks stay in float between INT8 layers: {advice}")
    if smooth:
        found.append(f"{smooth} hard-swish, SiLU or GELU activations do not fuse into INT8 convolutions: {advice}")
    return found
