"""From a backbone's name and a choice of weights to a network ready for transfer."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from edgetl.artifacts import write_bytes
from edgetl.backbones.network import Head, Network, OriginalNetwork, check_head, last_linear
from edgetl.backbones.weights import Match, WeightsReport, map_weights, read_weights
from edgetl.backbones.zoo import (
    SMALL_CNN,
    default_labels,
    default_preprocess,
    default_weights,
    feature_extractor,
    feature_shape,
    full_model,
    skeleton,
)
from edgetl.errors import BackboneError, CheckpointError, EdgetlError, SpecError, WeightsError, require
from edgetl.spec import ModelSpec, PreprocessSpec

__all__ = ["Pretrained", "load_network", "load_pretrained", "new_network", "save_network"]

_METADATA = "edgetl_spec"


@dataclass(frozen=True)
class Pretrained:
    """A backbone with its weights, before it gets a new head.

    Attributes:
        name: The backbone's name.
        backbone: Ends at the last feature map.
        preprocess: What its weights expect.
        source: The network with its own head, or None where the weights brought none.
        source_spec: Of that network.
        report: What the file of weights filled, or None for default and random weights.
    """

    name: str
    backbone: nn.Module
    preprocess: PreprocessSpec
    source: nn.Module | None = None
    source_spec: ModelSpec | None = None
    report: WeightsReport | None = None


def load_pretrained(name: str, weights: str = "default", **overrides: Any) -> Pretrained:
    """Builds a backbone and fills it.

    Args:
        name: See the package.
        weights: ``default`` (its authors' weights, downloaded), ``none`` (random), or a local file.
        **overrides: Fields of `PreprocessSpec` that replace the weights' own: ``size``, ``mean``, ``std``, ``decode``.

    Raises:
        BackboneError: The name is unknown or the structure unusable.
        WeightsError: The weights cannot be had, or do not fit.
        SpecError: An override is out of range.
    """
    if weights == "none":
        preprocess = _override(default_preprocess(name), overrides)
        return Pretrained(name, feature_extractor(full_model(name)), preprocess)
    if weights == "default":
        full, report = _default_model(name), None
        preprocess = _override(default_preprocess(name), overrides)
    else:
        state, metadata = read_weights(Path(weights))
        if _METADATA in metadata:
            return _from_own_file(name, Path(weights), overrides)
        preprocess = _override(default_preprocess(name, Path(weights).name), overrides)
        full = full_model(name, _classes_in(name, state))
        report = map_weights(full, state, weights)
    source, source_spec = _source(name, full, preprocess, report)
    return Pretrained(name, feature_extractor(full), preprocess, source, source_spec, report)


def new_network(
    pretrained: Pretrained, labels: tuple[str, ...], *, head: str = "linear", dropout: float = 0.0
) -> tuple[Network, ModelSpec]:
    """Puts a new, random head on a backbone.

    Args:
        pretrained: Its modules become part of the network.
        labels: The new classes.
        head: See `Head`.
        dropout: Before the last layer, 0 to 1.
    """
    shape = feature_shape(pretrained.backbone, pretrained.preprocess)
    network = Network(pretrained.preprocess, pretrained.backbone, Head(head, shape, len(labels), dropout))
    return network, ModelSpec(pretrained.name, pretrained.preprocess, labels, head)


def save_network(network: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Writes a network as safetensors, its spec in the file's metadata, whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    write_bytes(path, save(state, metadata={_METADATA: json.dumps(spec.to_dict())}))


def load_network(path: Path) -> tuple[nn.Module, ModelSpec]:
    """Rebuilds what `save_network` wrote, in eval mode.

    Raises:
        CheckpointError: The file was not written by edgetl, or its network cannot be rebuilt.
    """
    try:
        state, metadata = read_weights(path)
        spec = ModelSpec.from_dict(json.loads(metadata[_METADATA]))
    except KeyError:
        raise CheckpointError(f"{path}: was not written by edgetl; give it to finetune by --weights") from None
    except (WeightsError, SpecError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    network = _rebuild(spec)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit backbone {spec.backbone} ({str(error)[:120]})") from None
    return network.eval(), spec


def _rebuild(spec: ModelSpec) -> nn.Module:
    if spec.head == "own":
        return OriginalNetwork(spec.preprocess, full_model(spec.backbone, len(spec.labels)))
    check_head(spec.head)
    backbone = feature_extractor(full_model(spec.backbone))
    return Network(
        spec.preprocess, backbone, Head(spec.head, feature_shape(backbone, spec.preprocess), len(spec.labels))
    )


def _override(preprocess: PreprocessSpec, overrides: dict[str, Any]) -> PreprocessSpec:
    changes = {k: v for k, v in overrides.items() if v is not None}
    if "size" in changes and preprocess.resize_to is not None:
        scaled = round(preprocess.resize_to * max(changes["size"]) / max(preprocess.size))
        changes.setdefault("resize_to", max(scaled, *changes["size"]))
    return dataclasses.replace(preprocess, **changes)


def _default_model(name: str) -> nn.Module:
    if name == SMALL_CNN:
        raise WeightsError("small_cnn has no published weights: give --weights none, or a file from an earlier run")
    if ":" in name:
        return full_model(name)
    advice = "give a local file by --weights FILE, or --weights none"
    try:
        if name.startswith("timm/"):
            timm = require("timm", "train")
            full_model(name)  # refuses unknown names with their neighbours
            model: nn.Module = timm.create_model(name.removeprefix("timm/"), pretrained=True)
            return model
        full = full_model(name)
        state = default_weights(name).get_state_dict(progress=False, check_hash=True, weights_only=True)
    except EdgetlError:
        raise
    except Exception as error:  # URLError, HfHub errors, timeouts: whatever the client of the day raises
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(f"weights of {name} cannot be downloaded ({reason}); {advice}") from None
    full.load_state_dict(state)
    return full


def _classes_in(name: str, state: dict[str, Tensor]) -> int | None:
    """Reads the number of classes off the file's own head, where it stands under the network's name for it."""
    if ":" in name:
        return None
    try:
        head, _ = last_linear(skeleton(name))
    except BackboneError:
        return None
    weight = state.get(f"{head}.weight")
    return int(weight.shape[0]) if weight is not None and weight.ndim == 2 else None


def _source(
    name: str, full: nn.Module, preprocess: PreprocessSpec, report: WeightsReport | None
) -> tuple[nn.Module | None, ModelSpec | None]:
    """Copies the classifier with its own head, if its head was filled."""
    try:
        head, linear = last_linear(full)
    except BackboneError:
        return None, None
    if report is not None and any(missing.startswith(head) for missing in report.missing):
        return None, None
    if linear.out_features < 2:
        return None, None
    spec = ModelSpec(name, preprocess, default_labels(name, linear.out_features), "own")
    return OriginalNetwork(preprocess, copy.deepcopy(full)).eval(), spec


def _from_own_file(name: str, path: Path, overrides: dict[str, Any]) -> Pretrained:
    """Takes the backbone of an earlier run; that run's network is the original."""
    source, spec = load_network(path)
    if spec.backbone != name:
        raise WeightsError(f"{path}: holds backbone {spec.backbone}, not {name}; give --backbone {spec.backbone}")
    if isinstance(source, OriginalNetwork):
        backbone, prefix = feature_extractor(source.reassembled()), "body."
    else:
        backbone, prefix = copy.deepcopy(source.get_submodule("backbone")), "backbone."
    kept = [f"{prefix}{n}" for n in backbone.state_dict()]
    matched = tuple(Match(n, n, "name") for n in kept)
    left = tuple(n for n in source.state_dict() if n not in set(kept))
    report = WeightsReport(matched, left, ())
    return Pretrained(name, backbone, _override(spec.preprocess, overrides), source, spec, report)
