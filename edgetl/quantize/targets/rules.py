"""The terms in which a target says what it wants of an INT8 graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["CPU_CARRIED", "CPU_GATED", "WEIGHTED", "Target"]

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What ONNX Runtime has integer kernels for, or, as HardSwish, what integers can be made to compute.
CPU_CARRIED = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "HardSwish", "MaxPool", "Mul", "Sigmoid"})
CPU_GATED = frozenset({"Mul"})


@dataclass(frozen=True)
class Target:
    """Rules of one target; sources in docs/decisions/0004-int8-forms.md.

    Attributes:
        name: ``tensorrt``, ``x86`` or ``arm``.
        signed: int8 activations; otherwise uint8.
        symmetric: Zero point 0 always. Otherwise a tensor without negative values begins at the smallest level, and
            ONNX Runtime drops the ReLU before it; with a ReLU between, a convolution is no integer kernel.
        weighted: Ops whose activation and weight inputs are quantized.
        carried: Ops whose inputs and outputs are quantized too, so that integer kernels meet without a gap.
        gated: Carried ops that want one input of integers; the others (squeeze-excite's gate) are quantized for them.
        outputs: Whether a weighted op's output (behind its activation) is quantized.
        residual_only: Of an Add only the skip input is quantized; the other fuses into its convolution.
        half: Whether everything that is not INT8 becomes FP16.
        first_depth: INT8 begins at the first convolution that sums this many products or ends in a ReLU; 0 for any.
    """

    name: str
    signed: bool
    symmetric: bool
    weighted: frozenset[str]
    carried: frozenset[str]
    gated: frozenset[str]
    outputs: bool
    residual_only: bool
    half: bool
    first_depth: int

    @property
    def levels(self) -> tuple[int, int]:
        """Smallest and largest quantized value of an activation."""
        return (-128, 127) if self.signed else (0, 255)

    @property
    def dtype(self) -> type[np.generic]:
        """Numpy's type of quantized activations."""
        return np.int8 if self.signed else np.uint8
