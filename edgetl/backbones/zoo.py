"""Names of backbones, the networks behind them, and where each one's feature map is."""

from __future__ import annotations

import importlib
import math
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models as tv

from edgetl.backbones.network import last_linear
from edgetl.errors import BackboneError, require
from edgetl.spec import Interpolation, PreprocessSpec

__all__ = [
    "SMALL_CNN",
    "SmallCNN",
    "backbone_names",
    "default_labels",
    "default_preprocess",
    "default_weights",
    "feature_extractor",
    "feature_shape",
    "full_model",
    "skeleton",
]

SMALL_CNN = "small_cnn"

# Their published weights expect inputs in [-1, 1]: torchvision's transform_input.
_TRANSFORM_INPUT = ("googlenet", "inception_v3")


def backbone_names() -> list[str]:
    """Returns the built-in and torchvision names; ``timm/NAME`` and ``package.module:function`` come on top."""
    return [SMALL_CNN, *tv.list_models(module=torchvision.models)]


def full_model(name: str, num_classes: int | None = None) -> nn.Module:
    """Builds a classifier with its own head and random weights.

    Args:
        name: See the package.
        num_classes: Outputs of its own head; its authors' number by default. A ``package.module:function``
            decides for itself.

    Raises:
        BackboneError: The name is unknown, or building it fails.
        MissingExtraError: timm is not installed.
    """
    if ":" in name:
        return _from_function(name)
    keywords: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if name == SMALL_CNN:
        return SmallCNN(**keywords)
    if name.startswith("timm/"):
        return _from_timm(name, keywords)
    _check_torchvision(name)
    if name in _TRANSFORM_INPUT:
        keywords |= {"init_weights": True, "aux_logits": True}
    model: nn.Module = tv.get_model(name, weights=None, **keywords)
    return model


def _check_torchvision(name: str) -> None:
    if name not in tv.list_models(module=torchvision.models):
        raise BackboneError(_unknown(name))


class _StorageOnMeta(TorchFunctionMode):
    """Lets layers allocate on the meta device; torch.device("meta") would also catch RegNet's arithmetic."""

    _ALLOCATORS = (torch.empty, torch.zeros, torch.ones)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func in self._ALLOCATORS else {})})


def skeleton(name: str, num_classes: int | None = None) -> nn.Module:
    """Builds the same network as `full_model` without memory for its weights (the meta device).

    A function of the user's may load weights, which that device refuses: its network is built as it is, then emptied.
    """
    if ":" in name:
        return full_model(name).to("meta")
    with _StorageOnMeta():
        return full_model(name, num_classes).to("meta")


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, backbone_names(), n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else "use a torchvision name, timm/NAME or package.module:function"
    )
    return f'backbone "{name}" is unknown: {hint}'


def _from_timm(name: str, keywords: dict[str, Any]) -> nn.Module:
    timm = require("timm", "train")
    short = name.removeprefix("timm/")
    if not timm.is_model(short):
        near = ", ".join(timm.list_models(f"*{short.split('_')[0]}*")[:3])
        raise BackboneError(f'backbone "{name}" is unknown to timm {timm.__version__}' + (f": {near}?" if near else ""))
    model: nn.Module = timm.create_model(short, pretrained=False, **keywords)
    return model


def _from_function(name: str) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BackboneError(f'backbone "{name}": cannot be imported ({error})') from None
    try:
        model = function()
    except Exception as error:  # the user's own code: whatever it raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise BackboneError(f'backbone "{name}": calling it without arguments failed ({reason})') from error
    if not isinstance(model, nn.Module):
        raise BackboneError(f'backbone "{name}": returned {type(model).__name__}, it must return a torch.nn.Module')
    return model


class SmallCNN(nn.Module):
    """The built-in network for small pictures: six 3 x 3 convolutions, 32 to 128 channels, ReLU."""

    def __init__(self, num_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        plan = [(32, 1), (32, 2), (64, 1), (64, 2), (128, 1), (128, 2)]
        layers = []
        for width, stride in plan:
            layers.append(_conv_bn_relu(channels, width, stride))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (N, num_classes) of normalized pictures (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class _ConvBnRelu(nn.Sequential):
    """A type of its own, so that it counts as one block."""


def _conv_bn_relu(inputs: int, outputs: int, stride: int) -> _ConvBnRelu:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return _ConvBnRelu(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def feature_extractor(full: nn.Module) -> nn.Module:
    """Returns the part of a classifier that ends at its last feature map (N, C, h, w).

    Own head and pre-logit layers are left behind; the weights are shared with ``full``. Networks without a
    map give their embedding as (N, D, 1, 1).

    Raises:
        BackboneError: Where the map is cannot be told.
    """
    if type(full).__module__.startswith("timm."):
        return _TimmFeatures(full)
    for kind, take in _FEATURES.items():
        if isinstance(full, kind):
            extractor: nn.Module = take(full)
            return extractor
    if isinstance(full, SmallCNN) or type(full).__module__.startswith("torchvision."):
        features = getattr(full, "features", None)
        if isinstance(features, nn.Module):
            return features
    return _Headless(full)  # what another's forward does around an attribute of that name, nobody knows


def _children(full: nn.Module, *names: str) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, full.get_submodule(name)) for name in names))


def _children_before_pool(full: nn.Module) -> nn.Sequential:
    """Inception networks run their children in order; the auxiliary heads are not for inference."""
    names = [name for name, _ in full.named_children()]
    kept = [name for name in names[: names.index("avgpool")] if "aux" not in name.lower()]
    return _children(full, *kept)


_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_FEATURES: dict[type[nn.Module], Any] = {
    tv.ResNet: lambda m: _children(m, *_RESNET),
    tv.RegNet: lambda m: nn.Sequential(_Opened(stem=m.stem), _Opened(**dict(m.trunk_output.named_children()))),
    tv.ShuffleNetV2: lambda m: _children(m, "conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    tv.DenseNet: lambda m: nn.Sequential(m.features, nn.ReLU()),
    tv.MNASNet: lambda m: m.layers,
    tv.GoogLeNet: _children_before_pool,
    tv.Inception3: _children_before_pool,
    tv.SwinTransformer: lambda m: nn.Sequential(OrderedDict(features=m.features, norm=m.norm, permute=m.permute)),
    tv.MaxVit: lambda m: nn.Sequential(OrderedDict(stem=m.stem, blocks=nn.Sequential(*m.blocks))),
    tv.VisionTransformer: lambda m: _opened_encoder(m),
}


class _Opened(nn.Sequential):
    """A container whose children count as blocks of their own."""

    is_container = True

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__(OrderedDict(modules))


def _as_map(features: Tensor) -> Tensor:
    return features[:, :, None, None] if features.ndim == 2 else features


def _opened_encoder(transformer: Any) -> nn.Module:
    _opened(transformer.encoder)
    return _Headless(transformer)


def _opened(module: Any) -> Any:
    """Marks a module as a container whose children are blocks of their own."""
    module.is_container = True
    return module


class _Headless(nn.Module):
    """A classifier without its last linear layer; its embedding becomes a map of 1 x 1."""

    def __init__(self, full: nn.Module) -> None:
        super().__init__()
        name, _ = last_linear(full)
        parent, _, leaf = name.rpartition(".")
        setattr(full.get_submodule(parent), leaf, nn.Identity())
        self.body = _opened(full)

    def forward(self, x: Tensor) -> Tensor:
        return _as_map(self.body(x))


class _TimmFeatures(nn.Module):
    """timm's forward_features as (N, C, h, w): tokens are pooled as the model does, NHWC is transposed."""

    def __init__(self, full: Any) -> None:
        super().__init__()
        self.channels = int(full.num_features)
        for name in ("conv_head", "norm_head", "act2"):
            if hasattr(full, name) and _runs_after_pool(full):
                setattr(full, name, nn.Identity())
        full.reset_classifier(0)
        self.body = _opened(full)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body.forward_features(x)
        if features.ndim == 3:
            features = self.body.forward_head(features, pre_logits=True)
        if features.ndim == 4 and features.shape[1] != self.channels and features.shape[3] == self.channels:
            features = features.permute(0, 3, 1, 2)
        return _as_map(features)


def _runs_after_pool(full: nn.Module) -> bool:
    """Tells whether conv_head belongs to the head, as in MobileNetV3 and V4 (in EfficientNet it does not)."""
    names = [name for name, _ in full.named_children()]
    return "global_pool" in names and "conv_head" in names and names.index("global_pool") < names.index("conv_head")


def feature_shape(backbone: nn.Module, spec: PreprocessSpec) -> tuple[int, int, int]:
    """Runs one empty picture and returns the map's (C, h, w).

    Raises:
        BackboneError: The backbone cannot take this input size, or gives no map.
    """
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone(torch.zeros(1, spec.channels, *spec.size, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise BackboneError(
            f"backbone cannot take pictures of {spec.size[0]} x {spec.size[1]} x {spec.channels}: "
            f"{' '.join(str(error).split())[:160]}; choose another --size"
        ) from None
    finally:
        backbone.train(training)
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise BackboneError("backbone must give one feature map of shape (N, C, h, w)")
    return int(features.shape[1]), int(features.shape[2]), int(features.shape[3])


def default_preprocess(name: str, weights_file: str = "") -> PreprocessSpec:
    """Returns the preprocessing that a backbone's published weights were trained with.

    Args:
        name: Backbone.
        weights_file: Base name of a local file; torchvision's own file names choose among its presets.
    """
    if name == SMALL_CNN:
        half = (0.5, 0.5, 0.5)
        return PreprocessSpec(size=(32, 32), resize_to=None, crop="none", mode="squash", mean=half, std=half)
    if name.startswith("timm/"):
        return _timm_preprocess(name)
    if ":" in name:
        return PreprocessSpec()
    return _torchvision_preprocess(name, weights_file)


def default_weights(name: str) -> Any:
    """Returns torchvision's newest weights for a name; ViT-H's were made for another input size than its default."""
    _check_torchvision(name)
    presets = tv.get_model_weights(name)
    return presets.IMAGENET1K_SWAG_LINEAR_V1 if name == "vit_h_14" else presets.DEFAULT


def _torchvision_preprocess(name: str, weights_file: str) -> PreprocessSpec:
    _check_torchvision(name)
    presets = list(tv.get_model_weights(name))
    chosen = next((w for w in presets if weights_file and w.url.endswith("/" + weights_file)), None)
    if chosen is None:  # a file of unknown origin: the first, classic recipe
        chosen = presets[0] if weights_file else default_weights(name)
    transform = chosen.transforms()
    size, resize = int(transform.crop_size[0]), int(transform.resize_size[0])
    mean, std = tuple(map(float, transform.mean)), tuple(map(float, transform.std))
    if name in _TRANSFORM_INPUT:
        mean = std = (0.5, 0.5, 0.5)
    return PreprocessSpec(
        size=(size, size), resize_to=max(resize, size), interpolation=transform.interpolation.value, mean=mean, std=std
    )


def _timm_preprocess(name: str) -> PreprocessSpec:
    timm = require("timm", "train")
    try:
        config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    except (RuntimeError, KeyError) as error:  # a tag that it does not have
        raise BackboneError(f'backbone "{name}" is unknown to timm ({" ".join(str(error).split())[:120]})') from None
    if config is None:
        return PreprocessSpec()
    _, height, width = config.input_size
    interpolation: Interpolation = "bilinear" if config.interpolation == "bilinear" else "bicubic"
    mean, std = tuple(map(float, config.mean)), tuple(map(float, config.std))
    if config.crop_mode == "squash":
        return PreprocessSpec(
            size=(height, width), resize_to=None, crop="none", mode="squash", interpolation=interpolation,
            mean=mean, std=std,
        )  # fmt: skip
    resize = max(math.floor(min(height, width) / (config.crop_pct or 1.0)), height, width)
    return PreprocessSpec(size=(height, width), resize_to=resize, interpolation=interpolation, mean=mean, std=std)


def default_labels(name: str, count: int) -> tuple[str, ...]:
    """Returns the names of a published classifier's outputs, or ``class_0`` ... where nobody tells."""
    if not name.startswith("timm/") and ":" not in name and name != SMALL_CNN:
        names = tv.get_model_weights(name).DEFAULT.meta["categories"]
        if len(names) == count:
            return _unique(names)
    return tuple(f"class_{i}" for i in range(count))


def _unique(names: list[str]) -> tuple[str, ...]:
    """ImageNet has two cranes and two maillots; the second gets its index."""
    seen: set[str] = set()
    unique = []
    for i, name in enumerate(names):
        unique.append(f"{name} ({i})" if name in seen else name)
        seen.add(name)
    return tuple(unique)
