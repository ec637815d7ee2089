"""What quantizing an activation does to the mean of its channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from edgetl.quantize.graph import Graph
from edgetl.quantize.probing import Probed
from edgetl.quantize.rewrite import Range, activation_parameters
from edgetl.quantize.targets import Target

__all__ = ["input_shifts"]


def input_shifts(
    graph: Graph,
    ranges: Mapping[str, Range],
    target: Target,
    batches: Iterable[NDArray[np.uint8]],
    *,
    threads: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Returns E[Q(x) - x] of each channel, (C,), for the maps that have a range; measured in the float graph.

    Args:
        graph: FP32.
        ranges: Of the tensors.
        target: Whose quantizer is applied.
        batches: uint8 (N, H, W, C).
        threads: Of ONNX Runtime; 0 lets it decide.
    """
    names = [name for name in sorted(ranges) if len(graph.shape(name) or ()) == 4]
    nodes, outputs = [], []
    constants: dict[str, NDArray[np.generic]] = {}
    for number, name in enumerate(names):
        base = f"edgetl_shift_{number}"
        scale, zero_point = activation_parameters(ranges[name], target)
        pair = {f"{base}_scale": np.asarray(scale), f"{base}_zero": zero_point}
        nodes += [
            helper.make_node("QuantizeLinear", [name, *pair], [f"{base}_q"]),
            helper.make_node("DequantizeLinear", [f"{base}_q", *pair], [f"{base}_dq"]),
            helper.make_node("Sub", [f"{base}_dq", name], [f"{base}_error"]),
            helper.make_node("GlobalAveragePool", [f"{base}_error"], [f"{base}_mean"]),
        ]
        constants |= pair
        outputs.append(f"{base}_mean")
    probed = Probed(graph.model, outputs, nodes, constants, threads=threads)
    sums: dict[str, NDArray[np.float64]] = {name: np.zeros(1) for name in names}
    pictures = 0
    for batch in batches:
        for name, mean in zip(names, probed.run(batch).values(), strict=True):
            sums[name] = sums[name] + mean.sum(axis=(0, 2, 3), dtype=np.float64)
        pictures += len(batch)
    return {name: total / max(1, pictures) for name, total in sums.items()}
