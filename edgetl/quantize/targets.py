"""What each target wants of an INT8 graph, as data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgetl.errors import InternalError

__all__ = ["TARGETS", "Target", "target_named"]


@dataclass(frozen=True)
class Target:
    """Rules of one target; sources in docs/decisions/0004-int8-forms.md.

    Attributes:
        name: ``tensorrt``, ``x86`` or ``arm``.
        signed: int8 activations with zero point 0; otherwise uint8 with a zero point.
        weighted: Ops whose activation and weight inputs are quantized.
        carried: Ops whose inputs and outputs are quantized too, so that integer kernels meet without a gap.
        outputs: Whether a weighted op's output (behind its activation) is quantized.
        residual_only: Of an Add only the skip input is quantized; the other fuses into its convolution.
        half: Whether everything that is not INT8 becomes FP16.
        skip_one_by_one: Convolutions of 1 x 1 maps (squeeze-excite) stay in float: they gain nothing.
    """

    name: str
    signed: bool
    weighted: frozenset[str]
    carried: frozenset[str]
    outputs: bool
    residual_only: bool
    half: bool
    skip_one_by_one: bool

    @property
    def levels(self) -> tuple[int, int]:
        """Smallest and largest quantized value of an activation."""
        return (-128, 127) if self.signed else (0, 255)

    @property
    def dtype(self) -> type[np.generic]:
        """Numpy's type of quantized activations."""
        return np.int8 if self.signed else np.uint8


_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_CPU_CARRIED = frozenset({"Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"})

TARGETS: tuple[Target, ...] = (
    Target(
        "tensorrt",
        signed=True,
        weighted=_WEIGHTED,
        carried=frozenset(),
        outputs=False,
        residual_only=True,
        half=True,
        skip_one_by_one=True,
    ),
    Target(
        "x86",
        signed=False,
        weighted=_WEIGHTED,
        carried=_CPU_CARRIED,
        outputs=True,
        residual_only=False,
        half=False,
        skip_one_by_one=True,
    ),
    Target(
        "arm",
        signed=True,
        weighted=_WEIGHTED,
        carried=_CPU_CARRIED,
        outputs=True,
        residual_only=False,
        half=False,
        skip_one_by_one=True,
    ),
)


def target_named(name: str) -> Target:
    """Returns a target's rules."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise InternalError(f"no target {name}")
