"""Looks into ONNX files without the onnx package, as a device must: does a graph want to read other files?

Only what can hold a tensor is descended into. Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto;
wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgetl.errors import BundleError

__all__ = ["external_data"]

_TENSOR = "tensor"
# message -> field -> message in it
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_DEEPEST = 64
_LARGEST_VARINT = 10  # bytes
_LARGEST_TAG = (1 << 32) - 1


def external_data(model: bytes) -> bool:
    """Tells whether a tensor of an ONNX model is kept in another file, which its runtime would open.

    Raises:
        BundleError: The bytes are no ONNX model.
    """
    stack: list[tuple[str, int, int, int]] = [("model", 0, len(model), 0)]
    while stack:
        kind, start, end, depth = stack.pop()
        if depth > _DEEPEST:
            raise BundleError(f"graphs within graphs, more than {_DEEPEST} deep")
        inner = _FIELDS.get(kind, {})
        for field, begin, stop in _fields(model, start, end):
            if kind == _TENSOR:
                if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and begin != 0):
                    return True
            elif field in inner:
                stack.append((inner[field], begin, stop, depth + 1))
    return False


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields (number, first byte, byte behind) of a message's fields; of a varint (number, value, 0).

    Nearly every tag and length is one byte, which is read here: the scan is part of each start.
    """
    while at < end:
        tag = data[at]
        if tag < 0x80:
            at += 1
        else:
            tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if tag > _LARGEST_TAG or number == 0:  # protobuf drops the upper bits, and would see another field than we
            raise BundleError("is no ONNX model")
        if wire == 0:
            value, at = _varint(data, at, end)
            yield number, value, 0
            continue
        if wire == 2:
            size = data[at] if at < end else 0x80
            if size < 0x80:
                at += 1
            else:
                size, at = _varint(data, at, end)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise BundleError("is no ONNX model")
        if at + size > end:
            raise BundleError("is no ONNX model, or was cut off")
        yield number, at, at + size
        at += size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(_LARGEST_VARINT):
        if at + shift >= end:
            break
        byte = data[at + shift]
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    raise BundleError("is no ONNX model, or was cut off")
