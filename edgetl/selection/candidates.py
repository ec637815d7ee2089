"""What there is to choose from."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.errors import InputError
from edgetl.finetune import FinetuneConfig

__all__ = ["DEFAULTS", "Candidate", "candidate_named", "candidates_in", "crossed"]

_SMALLEST = 8
_FIELDS = ("backbone", "weights", "size", "mean", "std")


@dataclass(frozen=True)
class Candidate:
    """A backbone, its weights and its input.

    Attributes:
        backbone: See `edgetl.backbones`.
        weights: ``default``, or a file.
        size: (height, width); None takes the weights' own.
        mean: Per channel; None takes the weights' own.
        std: Per channel; None takes the weights' own.
    """

    backbone: str
    weights: str = "default"
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """For people: backbone, file of weights, size."""
        weights = "" if self.weights == "default" else f"={Path(self.weights).name}"
        size = "" if self.size is None else f" at {self.size[0]}" + ("" if self.square else f"x{self.size[1]}")
        return f"{self.backbone}{weights}{size}"

    @property
    def square(self) -> bool:
        """Whether height and width are the same."""
        return self.size is None or self.size[0] == self.size[1]

    @property
    def options(self) -> list[str]:
        """Of ``edgetl finetune``."""
        found = ["--backbone", self.backbone]
        if self.weights != "default":
            found += ["--weights", self.weights]
        if self.size is not None:
            found += ["--size", str(self.size[0]) if self.square else f"{self.size[0]}x{self.size[1]}"]
        for name in ("mean", "std"):
            values = getattr(self, name)
            found += [] if values is None else [f"--{name}", ",".join(f"{value:g}" for value in values)]
        return found

    def command(self, data: str, *options: str) -> str:
        """Returns the line that trains it, with more options where there are any."""
        return shlex.join(["edgetl", "finetune", data, *self.options, *options])


# Networks of plain convolutions and ReLU, from 1 to 15 ms on a CPU: what INT8 is good at.
DEFAULTS = (
    Candidate("timm/mobilenetv4_conv_small"),
    Candidate("timm/mobilenetv4_conv_medium"),
    Candidate("timm/tf_efficientnet_lite0"),
    Candidate("mobilenet_v2"),
    Candidate("regnet_x_400mf"),
    Candidate("shufflenet_v2_x1_0"),
    Candidate("resnet18"),
    Candidate("resnet50"),
)


def candidate_named(text: str) -> Candidate:
    """Reads ``BACKBONE`` or ``BACKBONE=WEIGHTS``."""
    backbone, _, weights = text.partition("=")
    return Candidate(backbone, weights or "default")


def candidates_in(path: Path) -> list[Candidate]:
    """Reads a YAML list of mappings with the settings ``backbone``, ``weights``, ``size``, ``mean``, ``std``.

    Raises:
        InputError: The file cannot be read, or an entry cannot be used.
    """
    import yaml

    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: must be a list, like: - backbone: resnet18")
    return [_candidate(entry, f"{path}: entry {number}") for number, entry in enumerate(entries, 1)]


def _candidate(entry: Any, origin: str) -> Candidate:
    if not isinstance(entry, dict) or "backbone" not in entry:
        raise InputError(f"{origin}: must name a backbone")
    for name in entry:
        if name not in _FIELDS:
            raise InputError(f'{origin}: unknown setting "{name}"; known are {", ".join(_FIELDS)}')
    config = FinetuneConfig.from_dict(entry, origin)  # checks types
    return Candidate(**{name: getattr(config, name) for name in _FIELDS})


def crossed(candidates: Sequence[Candidate], sizes: Sequence[int]) -> list[Candidate]:
    """Returns every candidate at every size; as they are where no size is given.

    Raises:
        InputError: A size is no picture's.
    """
    if not sizes:
        return list(candidates)
    if min(sizes) < _SMALLEST:
        raise InputError(f"--sizes has {min(sizes)}: a network's input has at least {_SMALLEST} pixels a side")
    return [dataclasses.replace(candidate, size=(size, size)) for candidate in candidates for size in sizes]
