"""The pictures that ``edgetl bench`` judges each bundle on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetl.bench import Contender
    from edgetl.bundle import Bundle
    from edgetl.cli.display import Display
    from edgetl.dataset import Dataset

__all__ = ["Judge"]


def _bundle_and_data(text: str, data: str | None) -> tuple[str, str | None]:
    """Splits BUNDLE=DATA; a path may hold an equals sign of its own."""
    if Path(text).exists():
        return text, data
    path, _, own = text.rpartition("=")
    return (path, own) if path else (text, data)


class Judge:
    """Opens the data that each bundle is judged on: split as at its export, so that no training picture counts."""

    def __init__(self, display: Display, split: str | None, val_fraction: float | None, allow_leakage: bool) -> None:
        self._display = display
        self._split = split
        self._val_fraction = val_fraction
        self._allow_leakage = allow_leakage
        self._opened: dict[tuple[str, float, bool], Dataset] = {}

    def contenders(self, bundles: Sequence[str], data: str | None) -> list[Contender]:
        """Returns every bundle with its data."""
        from edgetl.bench import Contender
        from edgetl.bundle import open_bundle

        pairs = [_bundle_and_data(name, data) for name in bundles]
        opened = [open_bundle(path) for path, _ in pairs]  # a wrong path is told before pictures are read
        return [
            Contender(path, bundle.root, *(self._data_for(bundle, source) if source else (None,)))
            for bundle, (path, source) in zip(opened, pairs, strict=True)
        ]

    def _data_for(self, bundle: Bundle, source: str) -> tuple[Dataset, str]:
        from edgetl.cli.display import open_data
        from edgetl.dataset import VAL_FRACTION

        made = bundle.manifest["provenance"]
        fraction = self._val_fraction or made.get("val_fraction") or VAL_FRACTION
        key = (source, fraction, self._allow_leakage or bool(made.get("allow_leakage")))
        if key not in self._opened:
            self._opened[key] = open_data(self._display, source, val_fraction=key[1], allow_leakage=key[2])
        dataset, split = self._opened[key], self._split or _whole_or_val(source)
        if dataset.digest != made.get("dataset_digest") and split != "all":
            self._display.note(
                f"{bundle.root}: {source} is not, or no longer, the data it was exported with; if it was trained on "
                f"any of these pictures, the {split} figures flatter it"
            )
        return dataset, split


def _whole_or_val(source: str) -> str:
    """A folder val/ or test/ beside train/ is a split already."""
    folder = Path(source)
    return "all" if folder.name in ("val", "test") and (folder.parent / "train").is_dir() else "val"
