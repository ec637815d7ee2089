"""TensorRT comes as two products of one API; the one place that tells them apart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgetl.errors import EngineError, MissingExtraError, require
from edgetl.jetson import l4t_release

__all__ = ["PRODUCTS", "Heard", "Product", "listening", "product_named"]

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


class Heard:
    """What TensorRT said while somebody listened, the oldest first, bounded.

    Args:
        on_detail: Gets every line of detail; there are hundreds of thousands of them where kernels are timed.
    """

    def __init__(self, on_detail: Callable[[str], None] | None = None) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.on_detail = on_detail

    def words(self, *, first: bool = False) -> str:
        """Returns its complaints: of a build the first is the cause, of a run the last ones are."""
        told = self.errors[:2] if first else self.errors[-2:]
        return "; ".join(told)[:500] or "no reason given"


class _Listeners:
    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.logger: Any = None


_LISTENERS: dict[Any, _Listeners] = {}
_MAKING = threading.Lock()


@contextmanager
def listening(trt: Any, on_detail: Callable[[str], None] | None = None) -> Iterator[tuple[Any, Heard]]:
    """Gives TensorRT's logger, and what it is told meanwhile.

    TensorRT keeps a pointer to the first logger of a process, so there is one for ever; who listens comes and goes.

    Args:
        trt: The bindings.
        on_detail: Gets every line of detail.
    """
    listeners = _LISTENERS.setdefault(trt, _Listeners())
    with _MAKING:
        if listeners.logger is None:
            listeners.logger = _new_logger(trt, listeners)
    heard = Heard(on_detail)
    listeners.heard.append(heard)
    try:
        yield listeners.logger, heard
    finally:
        listeners.heard.remove(heard)


def _new_logger(trt: Any, listeners: _Listeners) -> Any:
    failed = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
    warned, detail = trt.ILogger.Severity.WARNING, trt.ILogger.Severity.VERBOSE

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            for heard in tuple(listeners.heard):
                if severity == detail:
                    if heard.on_detail is not None:
                        heard.on_detail(text)
                elif severity in failed or severity == warned:
                    kept = heard.errors if severity in failed else heard.warnings
                    if len(kept) < _MOST_LINES:
                        kept.append(" ".join(text.split()))

    return Log()
