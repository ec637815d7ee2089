"""Sessions of ONNX Runtime, on the CPU or through one of its GPU providers."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.errors import EngineError, require
from edgetl.runtime.session import UINT8, check_batch
from edgetl.spec import ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_BATCH", "PROVIDERS", "OrtSession", "has_provider"]

MAX_BATCH = 256
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def has_provider(name: str) -> bool:
    """Tells whether the installed ONNX Runtime was built with a provider: ``cpu``, ``cuda`` or ``tensorrt``."""
    return PROVIDERS[name] in require("onnxruntime", "cpu").get_available_providers()


class OrtSession:
    """A graph in ONNX Runtime. Thread-safe: ONNX Runtime's ``run`` is.

    Args:
        model: Path, or the file's bytes.
        spec: What the graph expects and answers.
        threads: Threads for one call; 0 lets ONNX Runtime decide.
        spin: Whether idle threads burn their core to react faster. Off, or sessions in one process fight.
        fake_quant: Computes Q/DQ pairs as they stand instead of fusing them into integer kernels: what
            TensorRT's numbers look like, at the price of speed.
        provider: ``cpu``, ``cuda`` or ``tensorrt``: what computes.
        provider_options: Of it, in ONNX Runtime's words.
        max_batch: Largest N that `infer` takes.

    Raises:
        EngineError: ONNX Runtime refuses the graph, in its own words, or computes it elsewhere than asked.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(
        self,
        model: Path | bytes,
        spec: ModelSpec,
        *,
        threads: int = 0,
        spin: bool = False,
        fake_quant: bool = False,
        provider: str = "cpu",
        provider_options: Mapping[str, str] | None = None,
        max_batch: int = MAX_BATCH,
    ) -> None:
        ort = require("onnxruntime", "cpu")
        wanted = PROVIDERS[provider]
        if not has_provider(provider):
            raise EngineError(
                f"the installed onnxruntime has no {wanted}: pip uninstall -y onnxruntime, then "
                "pip install 'edgetl[cuda]'"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        if fake_quant:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        name = "graph" if isinstance(model, bytes) else str(model)
        try:
            self._session: Any = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                options,
                providers=[(wanted, dict(provider_options or {}))],
                enable_fallback=0,  # or a failing call moves to another provider for good, without a word
            )
        except Exception as error:  # onnxruntime raises its own classes, unrelated to each other
            raise EngineError(f"{name}: ONNX Runtime refuses it ({_first_line(error)})") from None
        self._session._model_bytes = None  # kept by ONNX Runtime for the fallback that is turned off: the whole graph
        got = self._session.get_providers()[0]
        if got != wanted:  # ONNX Runtime takes the CPU without a word where a provider does not start
            raise EngineError(f"{name}: asked for {wanted}, ONNX Runtime took {got}; edgetl doctor says what it lacks")
        self.spec = spec
        self.max_batch = max_batch
        self._shape = spec.preprocess.input_shape
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._check(name)

    def _check(self, name: str) -> None:
        """Refuses a graph that does not fit its spec, before a picture is fed to it."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or len(inputs[0].shape) != 4:
            shown = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
            raise EngineError(f"{name}: must take one tensor(uint8) of (N, H, W, C), it takes {shown}")
        self._input = inputs[0].name
        logits = next((output for output in outputs if output.name == "logits"), None)
        if logits is None:
            raise EngineError(f'{name}: must have an output "logits", it has {", ".join(self._outputs)}')
        for what, shape, wanted in (
            ("pictures", inputs[0].shape[1:], self.spec.preprocess.input_shape),
            ("logits", logits.shape[1:], (len(self.spec.labels),)),
        ):
            fits = len(shape) == len(wanted) and all(
                has == want or not isinstance(has, int) for has, want in zip(shape, wanted, strict=True)
            )
            if not fits:
                raise EngineError(f"{name}: its {what} have shape (N, *{tuple(shape)}), the spec says (N, *{wanted})")

    def infer(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Runs uint8 (N, H, W, C) with 1 to ``max_batch`` pictures.

        Raises:
            EngineError: The session is closed, or the input does not fit.
        """
        session = self._session
        if session is None:
            raise EngineError("this session is closed; load the bundle again")
        if batch.dtype != UINT8 or batch.shape[1:] != self._shape or not 0 < len(batch) <= self.max_batch:
            check_batch(batch, self._shape, self.max_batch)  # a call costs 2 % of a small network's latency
        try:
            values = session.run(self._outputs, {self._input: batch})
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed ({_first_line(error)})") from None
        return dict(zip(self._outputs, values))  # noqa: B905  (strict costs 1 % of a small network's latency)

    def close(self) -> None:
        """Releases the graph, and gives its memory back to the system."""
        if self._session is not None:
            self._session = None
            _trim()

    def __enter__(self) -> OrtSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _trim() -> None:
    """Returns freed memory to the system: glibc keeps it, more with every thread and every exchanged graph."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
