"""The safetensors header: read strictly, written canonically.

Read by hand, because the streaming path needs byte offsets, and because every defect of a file has to be named
before any byte of output exists. Source: the normative list "Format" in the safetensors README.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from splitquant.errors import SourceError
from splitquant.format.dtypes import DTYPES

DTYPE_BITS: Mapping[str, int] = MappingProxyType({name: d.bits for name, d in DTYPES.items() if d.safetensors})
MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
LENGTH_BYTES = 8
LARGEST_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its dtype, shape and where its bytes lie, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: all tensors in order of their bytes, and the string metadata."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:  # noqa: C901 - a flat list of checks, each with its reason, reads best in one piece
    """Read and check the header of a safetensors file; SourceError names the file, the tensor and the defect."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES:
                raise _damaged(path, f"has {size} bytes, a safetensors file has at least {LENGTH_BYTES}")
            if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
                raise _damaged(path, f"announces a header of {length} bytes, and the file has {size} bytes in all")
            raw = file.read(length)
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        table = json.loads(raw.decode(), object_pairs_hook=lambda pairs: _no_duplicates(path, pairs))
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or an endless integer
        raise _damaged(path, f"has a header that is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise _damaged(path, "has a header that is not a JSON object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) and _is_text(key + value) for key, value in metadata.items()
    ):
        raise _damaged(path, "has a __metadata__ that is not a map of strings")
    data_start = LENGTH_BYTES + length
    entries = sorted(
        (_entry(path, name, item, data_start) for name, item in table.items()), key=lambda e: (e.start, e.nbytes)
    )
    position = data_start
    for entry in entries:
        if entry.start != position:
            what = "overlaps the tensor before it" if entry.start < position else "leaves a gap before it"
            raise _damaged(path, f"tensor {entry.name!r} begins at byte {entry.start} and {what} (expected {position})")
        position += entry.nbytes
    if position != size:
        what = "was cut short" if position > size else "has extra bytes at its end"
        raise _damaged(path, f"needs {position} bytes by its header and has {size}: it {what}")
    return Header(tuple(entries), metadata)


def _entry(path: Path, name: str, item: Any, data_start: int) -> Entry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"tensor {name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not _is_text(name):
        raise _damaged(path, f"tensor {name!r} has a name that is not valid Unicode")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged(path, f"tensor {name!r} has the unknown dtype {dtype!r}; known: {', '.join(sorted(DTYPE_BITS))}")
    if not _naturals(shape):
        raise _damaged(path, f"tensor {name!r} has the shape {shape!r}; expected a list of non-negative integers")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"tensor {name!r} has the data_offsets {offsets!r}; expected [begin, end]")
    if math.prod(shape) * DTYPE_BITS[dtype] % 8:
        raise _damaged(path, f"tensor {name!r} of {dtype} and shape {shape} ends inside a byte")
    expected = DTYPES[dtype].nbytes(shape)
    if expected > LARGEST_SIZE:
        raise _damaged(path, f"tensor {name!r} has a shape of more bytes than a file can have")
    if offsets[1] - offsets[0] != expected:
        raise _damaged(
            path, f"tensor {name!r} has {offsets[1] - offsets[0]} bytes; {dtype} of shape {shape} takes {expected}"
        )
    return Entry(name, dtype, tuple(shape), data_start + offsets[0], expected)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= LARGEST_SIZE for n in value
    )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return False
    return True


def _no_duplicates(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _damaged(path, f"names {twice!r} twice in its header")
    return table


def _damaged(path: Path, what: str) -> SourceError:
    return SourceError(f"{path}: {what}; the file is damaged or not a safetensors file: download or export it again")


def build_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[Entry]]:
    """The canonical header of a file with the given (name, dtype, shape) tensors, and where each will lie.

    Order: falling dtype size, then name, so that every tensor is aligned; no gaps; padded to a multiple of 8 bytes.
    """
    ordered = sorted(tensors, key=lambda tensor: (-DTYPE_BITS[tensor[1]], tensor[0]))
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position, spans = 0, []
    for name, dtype, shape in ordered:
        nbytes = DTYPES[dtype].nbytes(shape)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        spans.append((position, nbytes))
        position += nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = LENGTH_BYTES + len(text)
    entries = [
        Entry(name, dtype, shape, start + at, nbytes)
        for (name, dtype, shape), (at, nbytes) in zip(ordered, spans, strict=True)
    ]
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, entries
