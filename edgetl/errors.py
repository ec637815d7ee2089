"""Every error that edgetl raises on purpose.

::

    EdgetlError                exit 2   what the user gave cannot be used
    ├── InputError                      an option or an argument
    ├── SpecError                       a spec.json or a field of it
    ├── PictureError                    one picture
    ├── DatasetError                    a folder or a table of pictures
    ├── BackboneError                   a backbone's name or its structure
    ├── WeightsError                    a file of weights
    ├── CheckpointError                 a run folder, or resuming one
    ├── ExportError                     a network that cannot be converted faithfully
    ├── QuantizationError               a graph or its calibration
    ├── BundleError                     a model.edgetl folder
    ├── EngineError                     an inference engine that is missing or refuses a graph
    ├── Overloaded                      more requests wait than may
    ├── DeadlineExceeded                a request that could not be answered in time
    ├── MissingExtraError               a part of edgetl that is not installed
    ├── GateError              exit 1   the result is too bad to be shipped
    └── Interrupted            exit 130 Ctrl-C or SIGTERM, after the work was saved
    InternalError                       a defect of edgetl itself; keeps its traceback

A message is one line: what is wrong, where, and what to do next.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "BackboneError",
    "BundleError",
    "CheckpointError",
    "DatasetError",
    "DeadlineExceeded",
    "EdgetlError",
    "EngineError",
    "ExportError",
    "GateError",
    "InputError",
    "InternalError",
    "Interrupted",
    "MissingExtraError",
    "Overloaded",
    "PictureError",
    "QuantizationError",
    "SpecError",
    "WeightsError",
    "missing_extra",
    "require",
]


class EdgetlError(Exception):
    """Root of everything a user can cause and mend.

    Attributes:
        exit_code: what the command line ends with.
    """

    exit_code = 2


class InputError(EdgetlError):
    """An option or an argument cannot be used."""


class SpecError(EdgetlError):
    """A specification is not valid."""


class PictureError(EdgetlError):
    """A picture cannot be read."""


class DatasetError(EdgetlError):
    """A collection of pictures cannot be used."""


class BackboneError(EdgetlError):
    """A backbone is unknown or has a structure that cannot be used."""


class WeightsError(EdgetlError):
    """A file of weights cannot be used with this network."""


class CheckpointError(EdgetlError):
    """A run folder is incomplete, damaged, or in conflict with what was asked."""


class ExportError(EdgetlError):
    """A network cannot be converted, or the converted one answers differently."""


class QuantizationError(EdgetlError):
    """A graph cannot be quantized with what was given."""


class BundleError(EdgetlError):
    """A bundle is incomplete, damaged, or of an unknown version."""


class EngineError(EdgetlError):
    """An inference engine is missing, or refuses a graph or an input."""


class Overloaded(EdgetlError):  # noqa: N818  (what a server of requests calls it)
    """So many requests wait that another would be answered too late; try again, or show less."""


class DeadlineExceeded(EdgetlError):  # noqa: N818
    """A request waited so long that it could not be answered within its deadline, and was not begun."""


class MissingExtraError(EdgetlError):
    """A package that this step needs is not installed."""


class GateError(EdgetlError):
    """The result was measured and is worse than allowed."""

    exit_code = 1


class Interrupted(EdgetlError):  # noqa: N818  (an interruption is no error of the user's)
    """The user stopped the work; what was done is saved."""

    exit_code = 130


class InternalError(RuntimeError):
    """A defect of edgetl itself."""


_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "lightning", "timm", "safetensors", "sklearn", "yaml"), "train"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    "onnxruntime": "cpu",
    **dict.fromkeys(("tensorrt", "cuda"), "tensorrt"),
    "tensorrt_rtx": "rtx",
    "paramiko": "remote",
    **dict.fromkeys(("jinja2", "matplotlib"), "report"),
    "tensorboard": "tensorboard",
    "cryptography": "sign",
    "cv2": "camera",
}


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Returns the line that names what to install, or None where the module belongs to no extra of edgetl."""
    package = (error.name or "").split(".")[0]
    extra = _EXTRAS.get(package)
    return None if extra is None else _missing(package, extra)


def _missing(package: str, extra: str) -> MissingExtraError:
    return MissingExtraError(f"{package} is not installed, and this step needs it: pip install 'edgetl[{extra}]'")


def require(module: str, extra: str) -> ModuleType:
    """Imports ``module``, or names the extra that brings it.

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        package = module.split(".")[0]
        raise _missing(package, extra) from None
