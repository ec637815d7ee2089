"""edgetl: from a folder of pictures to a small, fast, proven classifier on a device.

A device app needs this module alone::

    import edgetl
    with edgetl.load("parts.edgetl") as classify:
        print(classify("bolt.jpg").label)

Importing it, and loading a bundle, never imports torch. What it offers is imported when first used, so that
``edgetl --help`` does not wait for numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgetl.errors import EdgetlError

if TYPE_CHECKING:
    from edgetl.runtime import Batching, Classifier, Frames, Prediction, load

__all__ = ["Batching", "Classifier", "EdgetlError", "Frames", "Prediction", "__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("Batching", "Classifier", "Frames", "Prediction", "load"):
        from edgetl import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'edgetl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
