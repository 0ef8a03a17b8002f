"""A walk over the protobuf bytes of an ONNX file that leaves the weights where they are.

Why: a protobuf reader takes a whole file into memory, several times over, before anybody can look at a size. Here the
bytes of weights are found by position only, so a file of 2 GB costs what its graph costs, and a file made to expand in
memory is refused by what it declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from splitquant.errors import SourceError
from splitquant.onnx.wire.expansion import TooLargeError, number_at, parsed_bytes
from splitquant.storage.files import SourceFile

LARGEST_FILE = 1 << 31  # protobuf itself ends here; larger models keep their weights in external data
MOST_GRAPH_BYTES = 256 << 20  # of nodes, names and shapes; the largest known graphs have less than 100 MB
MOST_PARSED_BYTES = 512 << 20  # of the same once they are objects in memory
MOST_FIELDS = 1_000_000  # nodes, initializers, value_infos, and what is in large ones of these
LEAST_SPAN = 1024  # weights smaller than this are left to the protobuf reader
_PAGE = 1 << 16
_LONGEST_NUMBER = 10
_DEEPEST = 200

# Field numbers of onnx.proto: what may hold weights, and what it holds in turn.
_INSIDE: dict[str, dict[int, str]] = {
    "the model": {7: "a graph", 25: "a function"},
    "a graph": {1: "a node", 5: "a tensor"},
    "a function": {7: "a node"},
    "a node": {5: "an attribute"},
    "a Constant": {5: "a value"},
    "an attribute": {6: "a graph", 11: "a graph"},
    "a value": {5: "a tensor", 6: "a graph", 11: "a graph"},
}
_MODEL_GRAPH, _OP_TYPE, _DOMAIN = 7, 4, 7
_DATA_TYPE, _FLOATS, _RAW, _EXTERNAL, _LOCATION = 2, 4, 9, 13, 14


class _Field(NamedTuple):  # made once per field of a graph: a dataclass takes several times as long
    number: int
    kind: int  # protobuf wire type
    start: int  # of the tag
    body: int
    end: int


def read_skeleton(path: Path, location: str) -> bytes:
    """Read an ONNX file without the bytes of its large weights: protobuf text of the model.

    The weights of initializers and of Constant nodes, in whatever graph or function, become external data at `location`,
    a name that stands for the file itself. SourceError for a file that is too large, cut short, or no protobuf.
    """
    with SourceFile(path) as file:
        size = file.nbytes
        if size >= LARGEST_FILE:
            raise SourceError(
                f"{path}: has {size} bytes; an ONNX file ends below {LARGEST_FILE}, since protobuf does: "
                "save the model with external data"
            )
        return _Walk(path, file, size, location).skeleton()


class _Walk:
    def __init__(self, path: Path, file: SourceFile, size: int, location: str) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._location = location
        self._page = b""
        self._page_at = 0
        self._taken = 0
        self._seen = 0

    def skeleton(self) -> bytes:
        graphs = [field for field in self._fields(0, self._size, "the model") if field.number == _MODEL_GRAPH]
        if not graphs:
            raise self._damaged("holds no graph")
        if len(graphs) > 1 or graphs[0].kind != 2:
            raise self._damaged("has two graphs, or a graph that is no message")
        cut = self._cut(0, self._size, "the model", 0)
        skeleton = self._bytes(0, self._size) if cut is None else b"".join(cut)
        try:
            parsed_bytes(skeleton, MOST_PARSED_BYTES)
        except TooLargeError as error:
            raise self._damaged(
                f"has a graph that takes more than {MOST_PARSED_BYTES >> 20} MiB of memory beside its weights"
            ) from error
        except ValueError as error:
            raise self._damaged("is cut short, or no protobuf") from error
        return skeleton

    def _cut(self, body: int, end: int, what: str, depth: int) -> list[bytes] | None:
        """The bytes of a message without large weights, in pieces; None where it has none."""
        if depth > _DEEPEST:
            raise self._damaged(f"has messages nested deeper than {_DEEPEST}")
        if what == "a node" and self._is_constant(body, end):
            what = "a Constant"
        inside, pieces = _INSIDE[what], list[bytes]()
        run_start = body  # neighbouring fields that stay are read in one piece
        for field in self._fields(body, end, what):
            inner = inside.get(field.number)
            if inner is None or field.kind != 2 or field.end - field.body < LEAST_SPAN:
                continue
            cut = (
                self._without_weights(field)
                if inner == "a tensor"
                else self._cut(field.body, field.end, inner, depth + 1)
            )
            if cut is not None:
                length = sum(map(len, cut))
                pieces += [self._bytes(run_start, field.start), varint(field.number << 3 | 2), varint(length), *cut]
                run_start = field.end
        if not pieces:
            return None
        return [*pieces, self._bytes(run_start, end)]

    def _is_constant(self, body: int, end: int) -> bool:
        op_type = domain = b""
        for field in self._fields(body, end, "a node"):
            if field.number in (_OP_TYPE, _DOMAIN) and field.kind == 2:
                said = self._read(field.body, min(field.end, field.body + len("Constant") + 1))
                op_type, domain = (said, domain) if field.number == _OP_TYPE else (op_type, said)
        return op_type == b"Constant" and domain in (b"", b"ai.onnx")

    def _without_weights(self, tensor: _Field) -> list[bytes] | None:  # noqa: C901 - a case for every field
        """A tensor with a reference to its bytes instead of them; None where it keeps them in another way.

        Packed float_data lies in the file as raw_data does.
        """
        raw: list[_Field] = []
        floats: list[_Field] = []
        kept: list[_Field] = []
        data_type = 0
        for field in self._fields(tensor.body, tensor.end, "a tensor"):
            if field.number == _RAW and field.kind == 2:
                raw.append(field)
            elif field.number == _FLOATS and field.end - field.body >= LEAST_SPAN:
                floats.append(field)
            elif field.number == _EXTERNAL:
                return None  # what has both is refused by whoever reads it
            elif field.number == _LOCATION:
                if self._read(field.body, field.end) != b"\0":
                    return None
            else:
                kept.append(field)
                if field.number == _DATA_TYPE and field.kind == 0:
                    data_type, _ = self._number(field.body, field.end, "a tensor")
        if len(raw) > 1:
            raise self._damaged(f"has a tensor at byte {tensor.start} with raw_data twice")
        if bool(raw) == bool(floats) or len(floats) > 1 or (floats and data_type != TensorProto.FLOAT):
            return None
        (data,) = raw or floats
        if data.kind != 2 or data.end - data.body < LEAST_SPAN:
            return None
        pieces = [self._bytes(field.start, field.end) for field in kept]
        return [*pieces, _reference(self._location, data.body, data.end - data.body)]

    def _fields(self, start: int, end: int, what: str) -> Iterator[_Field]:
        at = start
        while at < end:
            self._seen += 1
            if self._seen > MOST_FIELDS:
                raise self._damaged(f"has more than {MOST_FIELDS} nodes, initializers and other fields")
            tag, body = self._number(at, end, what)
            kind = tag & 7
            if kind == 2:
                length, body = self._number(body, end, what)
                after = body + length
            elif kind == 0:
                _, after = self._number(body, end, what)
            elif kind == 1:
                after = body + 8
            elif kind == 5:
                after = body + 4
            else:
                raise self._damaged(f"has an unknown protobuf field at byte {at} of {what}")
            if after > end or tag >> 3 == 0:
                raise self._damaged(f"has a field at byte {at} that runs past the end of {what}: it was cut short")
            yield _Field(tag >> 3, kind, at, body, after)
            at = after

    def _number(self, at: int, end: int, what: str) -> tuple[int, int]:
        inside = at - self._page_at
        if inside < 0 or inside + _LONGEST_NUMBER > len(self._page):
            self._page = self._read(at, max(at, min(self._size, at + _PAGE)))
            self._page_at, inside = at, 0
        try:
            value, after = number_at(self._page, inside)
        except (IndexError, ValueError):
            value, after = 0, self._size + 1
        after += self._page_at
        if after > end:
            raise self._damaged(f"has a number at byte {at} that runs past the end of {what}")
        return value, after

    def _bytes(self, start: int, end: int) -> bytes:
        self._taken += end - start
        if self._taken > MOST_GRAPH_BYTES:
            raise SourceError(
                f"{self._path}: has a graph of more than {MOST_GRAPH_BYTES >> 20} MiB, beside the weights in raw_data and "
                "packed float_data; the file is damaged, or keeps large weights in other fields: save the model with "
                "external data"
            )
        return self._read(start, end)

    def _read(self, start: int, end: int) -> bytes:
        buffer = np.empty(end - start, np.uint8)
        self._file.read_into(buffer, start)
        return buffer.tobytes()

    def _damaged(self, what: str) -> SourceError:
        return SourceError(f"{self._path}: {what}; the file is damaged or not an ONNX model: export it again")


def _reference(location: str, offset: int, nbytes: int) -> bytes:
    """The fields of a tensor that say where its bytes are: what `external_data` and `data_location` serialize to."""
    tensor = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)
    text: bytes = tensor.SerializeToString()
    return text


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
