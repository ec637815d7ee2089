"""What the builder made of a graph: fused layers, their types and formats, and what makes INT8 slow.

Source of the text: the detailed log of TensorRT-RTX 1.7 and of TensorRT 10, "Layers:" and one line a layer; the engine
inspector gives the same fields as JSON.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = ["BuildReport", "EngineLayer", "EngineTensor", "layers_of_inspector", "layers_of_log", "report_of"]

# TensorRT-RTX tells constants, TensorRT many parameters; what is in between is passed over.
_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: \[(?P<inputs>| \{.*?\})\], "
    r"(?:Constants: \[(?:| \{.*?\})\], )?Outputs: \[(?P<outputs>| \{.*?\})\], .*?Metadata:(?P<metadata>.*)$"
)
_ONNX = re.compile(r"\[ONNX Layer: (.*?)\]")
# Kernels that the compiler makes of element-wise work, and moves.
_ELEMENTWISE = frozenset({"kgen", "reformat", "noop", "pointwise", "pointwisev2", "shape_call", "constant", "shuffle"})
_INT8 = "Int8"


@dataclass(frozen=True)
class EngineTensor:
    """What flows between fused layers.

    Attributes:
        name: The builder's.
        dtype: ``Int8``, ``Half``, ``Float``, ``UInt8`` ...
        format: Memory layout, in the builder's words.
        shape: -1 where it varies.
    """

    name: str
    dtype: str
    format: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**self.__dict__, "shape": list(self.shape)}


@dataclass(frozen=True)
class EngineLayer:
    """One kernel.

    Attributes:
        name: The builder's.
        kind: ``correlation``, ``kgen``, ``CaskConvolution`` ...
        inputs: Activations that it reads.
        outputs: Activations that it writes.
        onnx: Names of the graph's nodes that are in it.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    onnx: tuple[str, ...]

    @property
    def converts(self) -> bool:
        """Whether it does nothing that a network asks for: it moves values between INT8 and float, or formats."""
        if self.kind.lower() == "reformat":
            return True
        into = any(t.dtype == _INT8 for t in self.outputs)
        out_of = any(t.dtype == _INT8 for t in self.inputs)
        return self.kind.lower() in _ELEMENTWISE and into != out_of

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        tensors = {side: [t.to_dict() for t in getattr(self, side)] for side in ("inputs", "outputs")}
        return {"name": self.name, "kind": self.kind, **tensors, "onnx": list(self.onnx)}


@dataclass(frozen=True)
class BuildReport:
    """What a plan computes in which precision.

    Attributes:
        layers: Fused layers in execution order; empty where the builder told nothing.
        weighted: Type of the input of each convolution and matrix product, by the graph's node name.
        islands: Groups of them that run in float between INT8 ones: each costs conversions, none saves any.
        conversions: Fused layers that only convert types or formats.
    """

    layers: tuple[EngineLayer, ...]
    weighted: Mapping[str, str]
    islands: tuple[tuple[str, ...], ...]
    conversions: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "weighted": dict(self.weighted),
            "islands": [list(island) for island in self.islands],
            "conversions": self.conversions,
            "layers": [layer.to_dict() for layer in self.layers],
        }


def layers_of_log(text: str) -> tuple[EngineLayer, ...]:
    """Reads the layers from the builder's detailed log; other text gives none."""
    matches = (_LINE.match(line) for line in text.splitlines())
    return tuple(
        EngineLayer(
            match["name"],
            match["kind"],
            tuple(_tensors_of_text(match["inputs"])),
            tuple(_tensors_of_text(match["outputs"])),
            tuple(_ONNX.findall(match["metadata"])),
        )
        for match in matches
        if match is not None
    )


_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[-\d,]*)\](?P<rest>.*?) ?\}")
_SPLIT = re.compile(r"Datatype: (?P<dtype>\w+), Format: (?P<format>.*)")
_JOINED = re.compile(r"Format/Datatype: (?P<format>.*)")


def _tensors_of_text(text: str) -> Iterable[EngineTensor]:
    for match in _TENSOR.finditer(text):
        shape = tuple(int(size) for size in match["shape"].split(",") if size)
        split, joined = _SPLIT.search(match["rest"]), _JOINED.search(match["rest"])
        if split is not None:
            yield EngineTensor(match["name"], split["dtype"], split["format"].strip(), shape)
        elif joined is not None:
            yield EngineTensor(match["name"], _dtype_in(joined["format"]), joined["format"].strip(), shape)


def layers_of_inspector(text: str) -> tuple[EngineLayer, ...]:
    """Reads the layers from an engine inspector's JSON; without detailed verbosity it names them alone."""
    entries = json.loads(text).get("Layers", ())
    return tuple(
        EngineLayer(
            entry["Name"],
            entry.get("LayerType", ""),
            tuple(map(_tensor_of_json, entry.get("Inputs", ()))),
            tuple(map(_tensor_of_json, entry.get("Outputs", ()))),
            tuple(_ONNX.findall(entry.get("Metadata", ""))),
        )
        for entry in entries
        if isinstance(entry, dict)
    )


_TYPES = {"int8": _INT8, "half": "Half", "fp16": "Half", "float": "Float", "fp32": "Float", "uint8": "UInt8"}


def _tensor_of_json(entry: Mapping[str, Any]) -> EngineTensor:
    shown = str(entry.get("Format/Datatype") or entry.get("Format") or "")
    told = str(entry.get("Datatype") or shown)
    return EngineTensor(str(entry.get("Name", "")), _dtype_in(told), shown, tuple(entry.get("Dimensions", ())))


def _dtype_in(text: str) -> str:
    words = re.findall(r"\w+", text.lower())
    return next((name for word, name in _TYPES.items() if word in words), text.strip())


def report_of(layers: Sequence[EngineLayer], weighted: Sequence[str]) -> BuildReport:
    """Says of each convolution and matrix product in which type it runs, and what surrounds it.

    Args:
        layers: In execution order.
        weighted: Names of the graph's convolutions and matrix products.
    """
    of_node = {name: _runs(name, layers) for name in weighted}
    types = {name: layer.inputs[0].dtype for name, layer in of_node.items() if layer is not None and layer.inputs}
    running = {name: layer for name, layer in of_node.items() if layer is not None}
    return BuildReport(
        tuple(layers),
        types,
        _islands(layers, running, types),
        sum(layer.converts for layer in layers),
    )


def _runs(node: str, layers: Sequence[EngineLayer]) -> EngineLayer | None:
    """Returns the fused layer that a node's products are in: kernels before and behind it name it as well.

    A product of few terms, as in squeeze-excite, may have become element-wise work itself.
    """
    holding = [layer for layer in layers if node in layer.onnx]
    return next((layer for layer in holding if layer.kind.lower() not in _ELEMENTWISE), next(iter(holding), None))


def _islands(
    layers: Sequence[EngineLayer], running: Mapping[str, EngineLayer], types: Mapping[str, str]
) -> tuple[tuple[str, ...], ...]:
    names_of: dict[str, list[str]] = defaultdict(list)
    for name, layer in running.items():
        names_of[layer.name].append(name)
    after = _next_weighted(layers, names_of)
    before: dict[str, set[str]] = defaultdict(set)
    for name, followers in after.items():
        for follower in followers:
            before[follower].add(name)
    in_float = [name for name in types if types[name] != _INT8 and not _is_tiny(running[name])]
    found, seen = [], set[str]()
    for start in in_float:
        if start in seen:
            continue
        group, edge = {start}, [start]
        while edge:
            name = edge.pop()
            near = {n for n in after[name] | before[name] if n in in_float} - group
            group |= near
            edge += near
        seen |= group
        enters = any(types.get(n) == _INT8 for name in group for n in before[name])
        leaves = any(types.get(n) == _INT8 for name in group for n in after[name])
        if enters and leaves:
            found.append(tuple(name for name in types if name in group))
    return tuple(found)


def _is_tiny(layer: EngineLayer) -> bool:
    """Tells of a layer on one position, as in squeeze-excite: to convert a handful of values costs nothing."""
    return all(size == 1 for size in layer.inputs[0].shape[2:])


def _next_weighted(layers: Sequence[EngineLayer], names_of: Mapping[str, list[str]]) -> dict[str, set[str]]:
    """Returns the weighted nodes that follow each weighted node, element-wise kernels between them passed over."""
    sources: dict[str, set[str]] = defaultdict(set)  # of a tensor: the weighted nodes whose values it carries
    after: dict[str, set[str]] = defaultdict(set)
    for layer in layers:
        arriving = {name for tensor in layer.inputs for name in sources[tensor.name]}
        own = names_of.get(layer.name, [])
        for name in arriving:
            after[name].update(own)
        for name, follower in pairwise(own):
            after[name].add(follower)
        for tensor in layer.outputs:
            sources[tensor.name] |= set(own[-1:]) or arriving
    return after
