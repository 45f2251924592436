"""Other files that an ONNX file refers to, read from its protobuf structure without the `onnx` package.

ONNX may keep tensors in files beside it ("external data"), under any path that it likes. The hashes of a
bundle cover one such file per stage, beside it, for weights that do not fit into ONNX's 2 GiB. How far an
engine follows any other path depends on its version, so there may be none. Weights are skipped, so the check
takes about 2 ms for any size.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from .errors import BundleError

_DEPTH_MAX = 64  # messages in messages; subgraphs of subgraphs come nowhere near
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types

# Which fields of which message of onnx.proto lead to a tensor: number -> message.
_TENSOR_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_MODEL_GRAPH = 7
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 13, 14
_COPY_AGAIN = "Copy or download the bundle again, or export it again."


def check_self_contained(path: Path, weights: Path | None = None) -> None:
    """Refuse an ONNX file that keeps a tensor in another file than `weights`, or that is no ONNX file.

    Raises:
        BundleError: naming the tensor, or what is wrong with the file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if not any(number == _MODEL_GRAPH for number, *_ in _fields(data, 0, len(data))):
                raise ValueError("it holds no graph")
            _walk(data, "Model", 0, len(data), path, weights, 0)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.", _COPY_AGAIN) from error
    except ValueError as error:  # empty, or not protobuf
        raise BundleError(f"{path} cannot be read as ONNX: {error}.", _COPY_AGAIN) from error


def _walk(
    data: mmap.mmap, message: str, start: int, end: int, path: Path, weights: Path | None, depth: int
) -> None:
    if depth > _DEPTH_MAX:
        raise ValueError("its messages are nested too deeply")
    if message == "Tensor":
        _check_tensor(data, start, end, path, weights)
        return
    inner = _TENSOR_FIELDS[message]
    for number, wire, begin, stop in _fields(data, start, end):
        if wire == _BYTES and number in inner:
            _walk(data, inner[number], begin, stop, path, weights, depth + 1)


def _check_tensor(data: mmap.mmap, start: int, end: int, path: Path, weights: Path | None) -> None:
    name, external, location = "", False, ""
    for number, wire, begin, stop in _fields(data, start, end):
        if number == _TENSOR_NAME and wire == _BYTES:
            name = data[begin:stop].decode("utf-8", "replace")
        elif number == _TENSOR_EXTERNAL and wire == _BYTES:
            external = True
            key, value = _entry(data, begin, stop)
            location = value if key == "location" else location
        elif number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and any(data[begin:stop])):
            external = True
    if external and (weights is None or location != weights.name):
        raise BundleError(
            f"{path} keeps tensor {name!r} in another file, which the bundle does not vouch for.",
            "Export the bundle again with all tensors inside the ONNX file.",
        )


def _entry(data: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    texts = {1: "", 2: ""}
    for number, wire, begin, stop in _fields(data, start, end):
        if number in texts and wire == _BYTES:
            texts[number] = data[begin:stop].decode("utf-8", "replace")
    return texts[1], texts[2]


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, first and one-past-last byte of every field in a message."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        wire = key & 7
        begin = at
        if wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire == _BYTES:
            length, begin = _varint(data, at, end)
            at = begin + length
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"unknown protobuf wire type {wire}")
        if at > end:
            raise ValueError("it is cut short")
        yield key >> 3, wire, begin, at


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("it is cut short" if at >= end else "a number in it is too long")
