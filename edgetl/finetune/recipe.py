"""Recipes: settings that belong together, in a file, perhaps with a source network that is trained first."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from edgetl.dataset import original_of
from edgetl.errors import InputError
from edgetl.finetune.config import FinetuneConfig

__all__ = ["Recipe", "SourceStage", "open_recipe", "recipe_names"]

_FIELDS = frozenset({"description", "settings", "source"})
_OF_SOURCE = frozenset({"data", "settings"})
_DIR = "{dir}"


@dataclass(frozen=True)
class SourceStage:
    """What is trained first.

    Attributes:
        data: Its pictures; ``{dir}`` stands for the folder of the published files that the command names.
        settings: Of its training, complete.
    """

    data: str
    settings: FinetuneConfig

    def data_beside(self, data: str) -> str:
        """Returns its pictures where the target's are ``data``.

        Raises:
            InputError: The recipe says "beside them", and ``data`` is no folder of published files.
        """
        original = original_of(data)
        if _DIR in self.data and original is None:
            kind = self.data.partition(":")[0]
            raise InputError(f"where this recipe's source pictures are is not known: give --source-data {kind}:DIR")
        return self.data if original is None else self.data.replace(_DIR, str(original[1]))


@dataclass(frozen=True)
class Recipe:
    """A way to transfer.

    Attributes:
        name: Of the file.
        description: One line.
        settings: By name, as in ``config.yaml``; valid together.
        source: What is trained first, or None.
    """

    name: str
    description: str
    settings: dict[str, Any] = field(default_factory=dict)
    source: SourceStage | None = None


def recipe_names() -> list[str]:
    """Returns the built-in recipes."""
    folder = resources.files("edgetl.recipes")
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def open_recipe(name: str) -> Recipe:
    """Reads a recipe.

    Args:
        name: A built-in one's name, or a file.

    Raises:
        InputError: There is none, or a field or a setting of it cannot be used.
    """
    if name in recipe_names():
        text, origin = (resources.files("edgetl.recipes") / f"{name}.yaml").read_text(encoding="utf-8"), name
    elif not Path(name).is_file():
        raise InputError(f"--recipe {name}: no such recipe or file; there are {', '.join(recipe_names())}")
    else:
        text, origin = _text_of(Path(name)), name
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{origin}: is not YAML ({' '.join(str(error).split())[:120]})") from None
    return _recipe(data, origin)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _recipe(data: object, origin: str) -> Recipe:
    fields = _mapping(data, origin, _FIELDS, required={"description", "settings"})
    if not isinstance(fields["description"], str):
        raise InputError(f"{origin}: description must be a line of text")
    settings = _settings(fields["settings"], f"{origin}: settings")
    source = None
    if "source" in fields:
        stage = _mapping(fields["source"], f"{origin}: source", _OF_SOURCE, required=set(_OF_SOURCE))
        where = f"{origin}: source: settings"
        if not isinstance(stage["data"], str):
            raise InputError(f"{origin}: source: data must name pictures, like cifar10:{{dir}}")
        config = FinetuneConfig.from_dict(_settings(stage["settings"], where), where)
        source = SourceStage(stage["data"], config)
    return Recipe(
        Path(origin).stem if origin.endswith((".yaml", ".yml")) else origin, fields["description"], settings, source
    )


def _mapping(data: object, origin: str, known: frozenset[str], required: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InputError(f"{origin}: must hold {', '.join(sorted(known))}")
    for name in data:
        if name not in known:
            raise InputError(f'{origin}: unknown field "{name}"; known are {", ".join(sorted(known))}')
    missing = sorted(required - set(data))
    if missing:
        raise InputError(f"{origin}: has no {missing[0]}")
    return data


def _settings(data: object, origin: str) -> dict[str, Any]:
    FinetuneConfig.from_dict(data, origin)
    assert isinstance(data, dict)  # or it was refused
    return data
