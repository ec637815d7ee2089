"""A backbone's name becomes a torch network with a new head; pretrained weights are mapped onto it.

Names: torchvision's classifiers (``mobilenet_v2``), ``timm/NAME``, the built-in ``small_cnn``, and
``package.module:function``.
"""

from edgetl.backbones.network import (
    Head,
    Network,
    OriginalNetwork,
    blocks,
    check_head,
    reset_weights,
    unfriendly,
    units_below,
)
from edgetl.backbones.pretrained import Pretrained, load_network, load_pretrained, new_network, save_network
from edgetl.backbones.weights import Match, WeightsReport, map_weights, read_weights
from edgetl.backbones.zoo import (
    backbone_names,
    default_preprocess,
    feature_extractor,
    feature_shape,
    full_model,
    skeleton,
)

__all__ = [
    "Head",
    "Match",
    "Network",
    "OriginalNetwork",
    "Pretrained",
    "WeightsReport",
    "backbone_names",
    "blocks",
    "check_head",
    "default_preprocess",
    "feature_extractor",
    "feature_shape",
    "full_model",
    "load_network",
    "load_pretrained",
    "map_weights",
    "new_network",
    "read_weights",
    "reset_weights",
    "save_network",
    "skeleton",
    "unfriendly",
    "units_below",
]
