"""What a model expects and what it answers: one description that travels inside every artifact."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgetl.errors import SpecError

__all__ = ["Interpolation", "ModelSpec", "PreprocessSpec", "is_label"]

Mode = Literal["shortest", "squash", "letterbox"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Decode = Literal["full", "reduced"]
Color = Literal["RGB", "L"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode),
    "interpolation": get_args(Interpolation),
    "decode": get_args(Decode),
    "color": get_args(Color),
}
_MAX_SIDE = 8192
_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True)
class PreprocessSpec:
    """How a picture becomes the network's input; `edgetl.preprocess` executes it.

    Decode, EXIF orientation, colour, resize and crop happen outside the graph and give uint8 NHWC.
    Scale, mean and std are inside the graph: ``(pixel * scale - mean) / std``.

    Attributes:
        version: Of the procedure; pictures go through the same steps for the same version.
        size: (height, width) of the network's input, pixels.
        resize_to: Length of the short side before the crop, pixels (mode ``shortest``).
        crop: ``center`` takes the middle of the resized picture (mode ``shortest``).
        mode: ``shortest`` keeps the ratio and crops, ``squash`` does not keep it, ``letterbox`` keeps
            it and fills the rest with grey (114).
        interpolation: Filter of the resize.
        antialias: Whether the filter grows with the reduction, as Pillow's and torchvision's do.
        decode: ``reduced`` lets the JPEG decoder halve the picture while it stays at least twice as
            large as the input: faster, and it changes about 1 % of decisions, so it is part of the model.
        exif: Whether the EXIF orientation is applied.
        color: ``RGB`` (3 channels) or ``L`` (1 channel).
        scale: Factor on the 0-255 pixel.
        mean: Per channel, subtracted after scaling.
        std: Per channel, divides after that.
    """

    version: int = 1
    size: tuple[int, int] = (224, 224)
    resize_to: int | None = 256
    crop: Literal["center", "none"] = "center"
    mode: Mode = "shortest"
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    decode: Decode = "full"
    exif: bool = True
    color: Color = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.version != 1:
            raise SpecError(f"preprocess.version is {self.version}, this edgetl knows 1: update edgetl")
        _check_sides(self.size)
        for name, allowed in _CHOICES.items():
            _check_choice(f"preprocess.{name}", getattr(self, name), allowed)
        self._check_resize()
        self._check_normalization()

    def _check_resize(self) -> None:
        if self.mode == "shortest":
            if self.resize_to is None or not isinstance(self.resize_to, int):
                raise SpecError('preprocess.resize_to is missing: mode "shortest" needs a number of pixels')
            if self.resize_to < max(self.size) or self.resize_to > _MAX_SIDE:
                raise SpecError(
                    f"preprocess.resize_to is {self.resize_to}: it must be between the crop, "
                    f"{max(self.size)}, and {_MAX_SIDE}"
                )
        elif self.resize_to is not None:
            raise SpecError(f'preprocess.resize_to has no meaning in mode "{self.mode}": set it to null')
        expected = "center" if self.mode == "shortest" else "none"
        if self.crop != expected:
            raise SpecError(f'preprocess.crop is "{self.crop}": mode "{self.mode}" goes with "{expected}"')
        if self.interpolation == "lanczos" and not self.antialias:
            raise SpecError('preprocess.interpolation "lanczos" needs antialias: set it to true, or take "bicubic"')

    def _check_normalization(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise SpecError(f"preprocess.{name} has {len(values)} values, {self.color} has {self.channels}")
            if not all(abs(v) <= _LARGEST_FLOAT32 for v in values):
                raise SpecError(f"preprocess.{name} is {values!s:.80}: every value must be finite in float32")
        if min(self.std) <= 0 or not 0 < self.scale <= _LARGEST_FLOAT32:
            raise SpecError("preprocess.std and preprocess.scale must be greater than 0, and finite in float32")

    @property
    def channels(self) -> int:
        """Number of colour channels, 3 or 1."""
        return 3 if self.color == "RGB" else 1

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one uint8 picture as the graph takes it."""
        return (*self.size, self.channels)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return _jsonable(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, data: object) -> PreprocessSpec:
        """Reads the JSON form; unknown fields are refused, absent ones take their default.

        Raises:
            SpecError: A field is unknown, of the wrong type, or out of range.
        """
        fields = _checked_fields("preprocess", cls, data)
        for name in ("size", "mean", "std"):
            if name in fields:
                fields[name] = tuple(fields[name])
        return cls(**fields)


@dataclass(frozen=True)
class ModelSpec:
    """What a model is: its task, backbone, preprocessing and labels. Travels unchanged.

    Attributes:
        task: ``classification``.
        backbone: Name that `edgetl.backbones` understands, or a free text for foreign models.
        preprocess: How a picture becomes the input.
        labels: One name per logit, in order.
        head: Head's description, ``linear``, ``mlp:W``, ``flatten-mlp:W`` or ``own``.
    """

    backbone: str
    preprocess: PreprocessSpec
    labels: tuple[str, ...]
    head: str = "linear"
    task: str = "classification"

    def __post_init__(self) -> None:
        if self.task != "classification":
            raise SpecError(f'task is "{self.task}": this edgetl knows "classification"')
        if len(self.labels) < 2:
            raise SpecError(f"labels has {len(self.labels)} entries: a classifier needs at least 2")
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise SpecError(f'labels names "{twice}" twice: labels must be different')
        for label in self.labels:
            if not is_label(label):
                raise SpecError(f"labels has {label!r:.80}: a label is one line of text, not empty")

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "task": self.task,
            "backbone": self.backbone,
            "head": self.head,
            "preprocess": self.preprocess.to_dict(),
            "labels": list(self.labels),
        }

    @classmethod
    def from_dict(cls, data: object) -> ModelSpec:
        """Reads the JSON form; unknown fields are refused.

        Raises:
            SpecError: A field is missing, unknown, of the wrong type, or out of range.
        """
        fields = _checked_fields("spec", cls, data)
        if "preprocess" not in fields or "labels" not in fields:
            raise SpecError("spec needs the fields preprocess and labels")
        fields.setdefault("backbone", "unknown")
        fields["preprocess"] = PreprocessSpec.from_dict(fields["preprocess"])
        fields["labels"] = tuple(fields["labels"])
        return cls(**fields)

    @classmethod
    def from_file(cls, path: Path) -> ModelSpec:
        """Reads a spec.json.

        Raises:
            SpecError: The file is absent, is not JSON, or is not a valid spec.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SpecError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{path}: is not JSON ({error})") from None
        try:
            return cls.from_dict(data)
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None


def is_label(text: str) -> bool:
    """Tells whether a class may have this name: one line of text, not empty."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a folder's name that is not UTF-8 reaches Python with surrogates no file takes back
        return False
    return text.splitlines() == [text]


def _jsonable(data: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}


def _check_sides(size: tuple[int, int]) -> None:
    if len(size) != 2 or not all(isinstance(s, int) and 1 <= s <= _MAX_SIDE for s in size):
        raise SpecError(f"preprocess.size is {list(size)}: it must be [height, width], each 1 to {_MAX_SIDE}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SpecError(f'{name} is "{value}": it must be one of {", ".join(allowed)}')


# JSON types by field; bool is an int in Python, so it is told apart by hand.
_TYPES: dict[str, tuple[type, ...]] = {
    "version": (int,),
    "size": (list,),
    "resize_to": (int, type(None)),
    "crop": (str,),
    "mode": (str,),
    "interpolation": (str,),
    "antialias": (bool,),
    "decode": (str,),
    "exif": (bool,),
    "color": (str,),
    "scale": (float, int),
    "mean": (list,),
    "std": (list,),
    "task": (str,),
    "backbone": (str,),
    "head": (str,),
    "preprocess": (dict,),
    "labels": (list,),
}
_ITEM_TYPES: dict[str, tuple[type, ...]] = {
    "size": (int,),
    "mean": (float, int),
    "std": (float, int),
    "labels": (str,),
}


def _checked_fields(where: str, cls: type, data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise SpecError(f"{where} must be a JSON object, not {type(data).__name__}")
    known = {f.name for f in dataclasses.fields(cls)}
    for name, value in data.items():
        if name not in known:
            raise SpecError(f'{where} has an unknown field "{name}": known are {", ".join(sorted(known))}')
        if not _is_a(value, _TYPES[name]) or (
            name in _ITEM_TYPES and not all(_is_a(v, _ITEM_TYPES[name]) for v in value)
        ):
            raise SpecError(f"{where}.{name} is {value!r:.80}: that is not of the right type")
    return dict(data)


def _is_a(value: object, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))
