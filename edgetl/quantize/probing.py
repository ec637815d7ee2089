"""Runs a graph for what flows inside it: extra nodes look at tensors, and their results are the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import require

__all__ = ["Probed"]


class Probed:
    """A session of ONNX Runtime on a copy of a graph.

    Args:
        model: FP32 graph with one uint8 input.
        outputs: Tensors to return, its own or the probes'.
        nodes: Probes to append.
        constants: Of the probes, by name.
        threads: Of ONNX Runtime; 0 lets it decide.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        outputs: Sequence[str],
        nodes: Iterable[onnx.NodeProto] = (),
        constants: Mapping[str, NDArray[np.generic]] | None = None,
        *,
        threads: int = 0,
    ) -> None:
        ort = require("onnxruntime", "cpu")
        probed = onnx.ModelProto()
        probed.CopyFrom(model)
        del probed.graph.output[:]
        probed.graph.node.extend(nodes)
        probed.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in (constants or {}).items())
        probed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session: Any = ort.InferenceSession(
            probed.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = list(outputs)
        self._input = model.graph.input[0].name

    def run(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Returns the outputs by name for uint8 (N, H, W, C)."""
        return dict(zip(self._outputs, self._session.run(self._outputs, {self._input: batch}), strict=True))
