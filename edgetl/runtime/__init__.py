"""What runs on the device: numpy, Pillow and one inference engine, never torch.

What it offers is imported when first used: an app waits for what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetl.runtime.batching import Batching
    from edgetl.runtime.classifier import Classifier
    from edgetl.runtime.frames import Frames
    from edgetl.runtime.loading import load
    from edgetl.runtime.prediction import Prediction
    from edgetl.runtime.session import Session

__all__ = ["Batching", "Classifier", "Frames", "Prediction", "Session", "load"]

_HOMES = {
    "Batching": "batching",
    "Classifier": "classifier",
    "Frames": "frames",
    "Prediction": "prediction",
    "Session": "session",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
