"""A walk over the protobuf bytes of an ONNX file that leaves the weights where they are.

Why: a protobuf reader takes a whole file into memory, several times over, before anybody can look at a size. Here the
raw bytes of initializers are found by position only, so a file of 2 GB costs what its graph costs, and a file made to
expand in memory is refused by what it declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitquant.checkpoint.files import SourceFile
from splitquant.errors import SourceError

LARGEST_FILE = 1 << 31  # protobuf itself ends here; larger models keep their weights in external data
MOST_GRAPH_BYTES = 512 << 20  # of nodes, names and shapes; the largest known graphs have less than 100 MB
MOST_ENTRIES = 4_000_000  # nodes, initializers, value_infos of the main graph
LEAST_SPAN = 1024  # weights smaller than this are left to the protobuf reader
_PAGE = 1 << 16

MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW = 7, 5, 9


@dataclass(frozen=True, slots=True)
class Span:
    """Where some bytes lie in a file."""

    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Skeleton:
    """An ONNX file without the raw bytes of its large initializers: protobuf text of the model, and where those bytes are.

    spans: by position among the initializers of the main graph.
    """

    model: bytes
    spans: dict[int, Span]


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    kind: int  # protobuf wire type
    start: int  # of the tag
    body: int
    end: int


def read_skeleton(path: Path) -> Skeleton:
    """Read the graph of an ONNX file; SourceError for a file that is too large, cut short, or no protobuf."""
    with SourceFile(path) as file:
        size = file.nbytes
        if size >= LARGEST_FILE:
            raise SourceError(
                f"{path}: has {size} bytes; an ONNX file ends below {LARGEST_FILE}, since protobuf does: "
                "save the model with external data"
            )
        return _Walk(path, file, size).skeleton()


class _Walk:
    def __init__(self, path: Path, file: SourceFile, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._page = b""
        self._page_at = 0
        self._taken = 0

    def skeleton(self) -> Skeleton:
        outside: list[bytes] = []
        graph: bytes | None = None
        spans: dict[int, Span] = {}
        for field in self._fields(0, self._size, "the model"):
            if field.number != MODEL_GRAPH:
                outside.append(self._bytes(field.start, field.end))
                continue
            if graph is not None or field.kind != 2:
                raise self._damaged("has two graphs, or a graph that is no message")
            graph, spans = self._graph(field)
        if graph is None:
            raise self._damaged("holds no graph")
        return Skeleton(b"".join(outside) + bytes([MODEL_GRAPH << 3 | 2]) + _varint(len(graph)) + graph, spans)

    def _graph(self, graph: _Field) -> tuple[bytes, dict[int, Span]]:
        pieces: list[bytes] = []
        spans: dict[int, Span] = {}
        initializers = 0
        run_start = run_end = graph.body  # neighbouring fields are read in one piece
        for entries, field in enumerate(self._fields(graph.body, graph.end, "the graph")):
            if entries >= MOST_ENTRIES:
                raise self._damaged(f"has more than {MOST_ENTRIES} nodes, initializers and value_infos")
            if field.number == GRAPH_INITIALIZER and field.kind == 2:
                initializers += 1
                if field.end - field.body >= LEAST_SPAN and (cut := self._without_raw(field)) is not None:
                    pieces += [self._bytes(run_start, run_end), cut[0]]
                    spans[initializers - 1] = cut[1]
                    run_start = field.end
            run_end = field.end
        pieces.append(self._bytes(run_start, run_end))
        return b"".join(pieces), spans

    def _without_raw(self, tensor: _Field) -> tuple[bytes, Span] | None:
        """A tensor without its raw bytes, and where they are; None where it keeps them in another way."""
        found: _Field | None = None
        pieces: list[bytes] = []
        for field in self._fields(tensor.body, tensor.end, "an initializer"):
            if field.number == TENSOR_RAW and field.kind == 2:
                if found is not None:
                    raise self._damaged(f"has an initializer at byte {tensor.start} with raw_data twice")
                found = field
            elif field.end - field.start > MOST_GRAPH_BYTES:
                return None
            else:
                pieces.append(self._bytes(field.start, field.end))
        if found is None or found.end - found.body < LEAST_SPAN:
            self._taken -= sum(map(len, pieces))
            return None
        body = b"".join(pieces)
        cut = bytes([GRAPH_INITIALIZER << 3 | 2]) + _varint(len(body)) + body
        return cut, Span(found.body, found.end - found.body)

    def _fields(self, start: int, end: int, what: str) -> Iterator[_Field]:
        at = start
        while at < end:
            tag, body = self._number(at, end, what)
            kind = tag & 7
            if kind == 0:
                _, after = self._number(body, end, what)
            elif kind == 1:
                after = body + 8
            elif kind == 5:
                after = body + 4
            elif kind == 2:
                length, body = self._number(body, end, what)
                after = body + length
            else:
                raise self._damaged(f"has an unknown protobuf field at byte {at} of {what}")
            if after > end or tag >> 3 == 0:
                raise self._damaged(f"has a field at byte {at} that runs past the end of {what}: it was cut short")
            yield _Field(tag >> 3, kind, at, body, after)
            at = after

    def _number(self, at: int, end: int, what: str) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self._byte(at)
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise self._damaged(f"has a number at byte {at} that runs past the end of {what}")

    def _byte(self, at: int) -> int:
        inside = at - self._page_at
        if not 0 <= inside < len(self._page):
            self._page = self._read(at, min(self._size, at + _PAGE))
            self._page_at, inside = at, 0
        return self._page[inside]

    def _bytes(self, start: int, end: int) -> bytes:
        self._taken += end - start
        if self._taken > MOST_GRAPH_BYTES:
            raise self._damaged(f"has a graph of more than {MOST_GRAPH_BYTES >> 20} MiB beside its weights")
        return self._read(start, end)

    def _read(self, start: int, end: int) -> bytes:
        buffer = np.empty(end - start, np.uint8)
        self._file.read_into(buffer, start)
        return buffer.tobytes()

    def _damaged(self, what: str) -> SourceError:
        return SourceError(f"{self._path}: {what}; the file is damaged or not an ONNX model: export it again")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
