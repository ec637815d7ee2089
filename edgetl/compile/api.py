"""TensorRT comes as two products of one API; the one place that tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgetl.errors import EngineError, MissingExtraError, require
from edgetl.jetson import l4t_release

__all__ = ["PRODUCTS", "Product", "logger_of", "product_named"]

_MOST_LINES = 200


@dataclass(frozen=True)
class Product:
    """One of them.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``, which is also the engine's name.
        module: Of its Python bindings.
        extra: Of edgetl that installs it.
        for_other_gpus: Whether it builds for GPUs that are not there.
        times_tactics: Whether it measures kernels while it builds, so that a timing cache saves time.
    """

    name: str
    module: str
    extra: str
    for_other_gpus: bool
    times_tactics: bool

    def bindings(self) -> Any:
        """Imports the Python bindings.

        Raises:
            MissingExtraError: They are not installed.
            EngineError: They are, and their libraries cannot be loaded.
        """
        try:
            return require(self.module, self.extra)
        except MissingExtraError:
            if self.name == "tensorrt" and l4t_release() is not None:  # pip's build does not know the board
                raise MissingExtraError(
                    "tensorrt is not visible here: on a Jetson it comes with JetPack, so make the environment by "
                    "python3 -m venv --system-site-packages"
                ) from None
            raise
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineError(
                f"{self.module} is installed but cannot be loaded ({str(error)[:200]}); see edgetl doctor"
            ) from None


PRODUCTS = (
    Product("tensorrt", "tensorrt", "tensorrt", for_other_gpus=False, times_tactics=True),
    Product("tensorrt-rtx", "tensorrt_rtx", "rtx", for_other_gpus=True, times_tactics=False),
)


def product_named(name: str) -> Product:
    """Returns the product of that name.

    Raises:
        EngineError: There is none.
    """
    for product in PRODUCTS:
        if product.name == name:
            return product
    raise EngineError(f'"{name}" builds no plans: it must be {" or ".join(p.name for p in PRODUCTS)}')


def logger_of(trt: Any, on_detail: Callable[[str], None] | None = None) -> Any:
    """Returns a logger for TensorRT that keeps what went wrong.

    Args:
        trt: The bindings.
        on_detail: Gets every line of detail; there are hundreds of thousands of them where kernels are timed.

    Returns:
        The logger, with the lists ``errors`` and ``warnings``, the oldest first, bounded.
    """
    failed = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
    warned, detail = trt.ILogger.Severity.WARNING, trt.ILogger.Severity.VERBOSE

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity == detail:
                if on_detail is not None:
                    on_detail(text)
            elif severity in failed or severity == warned:
                kept = self.errors if severity in failed else self.warnings
                if len(kept) < _MOST_LINES:
                    kept.append(" ".join(text.split()))

    return Log()
