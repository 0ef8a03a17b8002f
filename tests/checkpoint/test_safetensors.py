"""The header reader refuses every defect by name, and the header writer is canonical."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from builders.folders import Raw, bf16, frame, is_canonical, normal, read_tensors, safetensors_bytes
from splitquant.checkpoint.safetensors import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    Entry,
    build_header,
    read_header,
)
from splitquant.errors import SourceError
from splitquant.format.dtypes import DTYPES

laws = settings(max_examples=100, deadline=None, derandomize=True)


def item(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    """The header's entry of one tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@dataclass(frozen=True)
class Damaged:
    """A file that must be refused: its bytes, and what the message must say."""

    id: str
    data: bytes
    says: tuple[str, ...]


A, B = item(), item(offsets=(8, 16))
DAMAGED = [
    Damaged("no bytes", b"", ("has 0 bytes",)),
    Damaged("seven bytes", b"\x01" * 7, ("has 7 bytes",)),
    Damaged("no header", b"\0" * 8, ("not JSON",)),
    Damaged("header beyond the file", (99).to_bytes(8, "little") + b"{}", ("99", "10")),
    Damaged("header of 2**64 - 1 bytes", b"\xff" * 8 + b"{}", ("18446744073709551615",)),
    Damaged("not UTF-8", frame(b'{"\xff": 1}'), ("not JSON",)),
    Damaged("not JSON", frame(b"{"), ("not JSON",)),
    Damaged("nested beyond reason", frame(b'{"a":' + b"[" * 100_000), ("not JSON",)),
    Damaged("an integer of 5000 digits", frame(b'{"a": ' + b"9" * 5000 + b"}"), ()),
    Damaged("an array", frame([1]), ("not a JSON object",)),
    Damaged("a null", frame(None), ("not a JSON object",)),
    Damaged("metadata not of strings", frame({"__metadata__": {"a": 1}}), ("__metadata__",)),
    Damaged("metadata a list", frame({"__metadata__": []}), ("__metadata__",)),
    Damaged("tensor twice", frame(b'{"t":%b,"t":%b}' % ((json.dumps(A).encode(),) * 2), b"\0" * 8), ("'t' twice",)),
    Damaged(
        "key twice in a tensor",
        frame(b'{"t":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
        ("'dtype' twice",),
    ),
    Damaged("tensor is a list", frame({"t": []}), ("'t'",)),
    Damaged("key missing", frame({"t": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), ("'t'",)),
    Damaged("unknown key", frame({"t": item(more=1)}, b"\0" * 8), ("'t'",)),
    Damaged("unknown dtype", frame({"t": item("F33")}, b"\0" * 8), ("'t'", "F33", "BF16")),
    Damaged("dtype a number", frame({"t": item(3)}, b"\0" * 8), ("'t'", "dtype 3")),
    Damaged("dtype a list", frame({"t": item(["F32"])}, b"\0" * 8), ("'t'", "dtype")),
    Damaged("dtype an object", frame({"t": item({"a": 1})}, b"\0" * 8), ("'t'", "dtype")),
    Damaged("shape negative", frame({"t": item(shape=(-2,))}, b"\0" * 8), ("'t'", "[-2]")),
    Damaged("shape twice negative", frame({"t": item(shape=(-1, -2))}, b"\0" * 8), ("'t'", "[-1, -2]")),
    Damaged("shape of bools", frame({"t": item(shape=(True, 2))}, b"\0" * 8), ("'t'", "[True, 2]")),
    Damaged("shape of floats", frame({"t": item(shape=(2.0,))}, b"\0" * 8), ("'t'", "[2.0]")),
    Damaged("shape a text", frame({"t": {**A, "shape": "2"}}, b"\0" * 8), ("'t'",)),
    Damaged("shape null", frame({"t": {**A, "shape": None}}, b"\0" * 8), ("'t'",)),
    Damaged("product of 2**64", frame({"t": item(shape=(2**32, 2**32), offsets=(0, 0))}), ("'t'",)),
    Damaged("product of 2**64 + 2", frame({"t": item("U8", (2**63 + 1, 2), (0, 2))}, b"\0" * 2), ("'t'",)),
    Damaged("product beyond printing", frame({"t": item(shape=(10**4000,) * 3, offsets=(0, 0))}), ("'t'",)),
    Damaged("offsets of bools", frame({"t": item(offsets=(False, 8))}, b"\0" * 8), ("'t'", "data_offsets")),
    Damaged("offsets negative", frame({"t": item(offsets=(-8, 0))}, b"\0" * 8), ("'t'", "data_offsets")),
    Damaged("offsets backwards", frame({"t": item(offsets=(8, 0))}, b"\0" * 8), ("'t'", "data_offsets")),
    Damaged("one offset", frame({"t": item(offsets=(0,))}, b"\0" * 8), ("'t'", "data_offsets")),
    Damaged("three offsets", frame({"t": item(offsets=(0, 8, 8))}, b"\0" * 8), ("'t'", "data_offsets")),
    Damaged("too few bytes", frame({"t": item(offsets=(0, 4))}, b"\0" * 4), ("'t'", "4 bytes", "takes 8")),
    Damaged("offsets beyond the file", frame({"t": item("U8", (9,), (0, 9))}, b"\0" * 8), ("cut short",)),
    Damaged("cut short", safetensors_bytes({"t": np.zeros(4, np.float32)})[:-1], ("cut short",)),
    Damaged("extra bytes", safetensors_bytes({"t": np.zeros(4, np.float32)}) + b"\0", ("extra bytes",)),
    Damaged("gap at the start", frame({"t": item(offsets=(8, 16))}, b"\0" * 16), ("'t'", "gap")),
    Damaged("gap", frame({"s": A, "t": item(offsets=(9, 17))}, b"\0" * 17), ("'t'", "gap")),
    Damaged("overlap", frame({"s": A, "t": item(offsets=(4, 12))}, b"\0" * 12), ("'t'", "overlaps")),
    Damaged("same bytes twice", frame({"s": A, "t": A}, b"\0" * 8), ("'t'", "overlaps")),
    Damaged("sub-byte tensor that ends inside a byte", frame({"t": item("F4", (3,), (0, 2))}, b"\0\0"), ("'t'",)),
    Damaged("a lone surrogate in a name", frame(b'{"\\ud800":%b}' % json.dumps(A).encode(), b"\0" * 8), ()),
]


@pytest.mark.parametrize("case", DAMAGED, ids=lambda case: case.id)
def test_damaged_file_is_refused(tmp_path, case):
    """A damaged file gives a SourceError that names the file, the tensor and the defect."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(case.data)
    with pytest.raises(SourceError) as error:
        read_header(path)
    for text in (str(path), *case.says):
        assert text in str(error.value)


def test_header_above_the_limit_is_refused(tmp_path):
    """A header above 100 MB is refused before it is read, even where the file is long enough."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse
    with pytest.raises(SourceError, match="announces a header of 100000001 bytes"):
        read_header(path)


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_unreadable_path_is_refused(tmp_path, what):
    """What cannot be opened is a SourceError with its path."""
    path = tmp_path / "model.safetensors"
    if what == "folder":
        path.mkdir()
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        read_header(path)


LAXER = ("twice", "unknown key")  # what the reference lets pass: of two entries the last, keys that it does not know


@pytest.mark.parametrize(
    "case", [case for case in DAMAGED if not any(word in case.id for word in LAXER)], ids=lambda case: case.id
)
def test_the_official_reader_refuses_them_too(case):
    """What we call damaged is damaged by the reference implementation as well."""
    with pytest.raises(SafetensorError):
        deserialize(case.data)


def test_entries_are_in_order_of_their_bytes(tmp_path):
    """Entries come in the order of their bytes, with positions counted from the start of the file."""
    data = frame(
        {
            "__metadata__": {"format": "pt"},
            "z": item(offsets=(0, 8)),
            "a": item("F64", (0, 3), (8, 8)),
            "m": item("I64", (), (8, 16)),
        },
        bytes(range(16)),
    )
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    header = read_header(path)
    start = len(data) - 16
    assert header.entries == (
        Entry("z", "F32", (2,), start, 8),
        Entry("a", "F64", (0, 3), start + 8, 0),
        Entry("m", "I64", (), start + 8, 8),
    )
    assert header.metadata == {"format": "pt"}


def test_a_file_without_tensors_is_valid(tmp_path):
    """An empty header is a valid file, with and without metadata."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(frame({}))
    assert read_header(path).entries == ()
    path.write_bytes(frame(b'{"__metadata__":{"a":"b"}}   '))
    assert read_header(path).metadata == {"a": "b"}


VALID = safetensors_bytes(
    {
        "a.weight": normal(1, 4, 3),
        "b": np.arange(3, dtype=np.int64),
        "c": np.zeros((2, 0), np.float32),
        "d": np.float16(1),
    },
    {"format": "pt"},
)


@laws
@given(
    flips=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(1, 255)), max_size=6),
    cut=st.integers(0, len(VALID)),
    tail=st.binary(max_size=9),
)
def test_no_damage_gives_anything_but_source_error(tmp_path_factory, flips, cut, tail):
    """Flipped, cut and appended bytes give a SourceError, or a header that fits the file exactly."""
    data = bytearray(VALID)
    for at, mask in flips:
        data[at] ^= mask
    data = bytes(data[: cut if cut % 2 else len(data)]) + (tail if len(tail) % 2 else b"")
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(data)
    try:
        header = read_header(path)
    except SourceError:
        return
    end = 8 + int.from_bytes(data[:8], "little")
    for entry in header.entries:
        assert (entry.start, entry.nbytes) == (end, DTYPES[entry.dtype].nbytes(entry.shape))
        end += entry.nbytes
    assert end == len(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@laws
@given(
    table=st.dictionaries(
        st.sampled_from(["__metadata__", "a", "b"]),
        json_values
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "F4", "X"]) | json_values,
                "shape": st.lists(st.integers(0, 4), max_size=3) | json_values,
                "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | json_values,
            }
        ),
        max_size=3,
    ),
    size=st.integers(0, 24),
)
def test_no_json_gives_anything_but_source_error(tmp_path_factory, table, size):
    """A header of any JSON at all gives a SourceError or a header."""
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(frame(table, b"\0" * size))
    try:
        header = read_header(path)
    except SourceError:
        return
    assert sum(entry.nbytes for entry in header.entries) == size


def test_sub_byte_dtypes_are_packed():
    """Sub-byte tensors take their bits."""
    assert DTYPES["F4"].nbytes((3, 2)) == 3
    assert DTYPES["F6_E2M3"].nbytes((2, 2)) == 3
    assert DTYPES["F64"].nbytes((0, 10**30)) == 0


def test_every_known_dtype_round_trips(tmp_path):
    """Every dtype of the table is read back as it was written, and the official library agrees about its size."""
    shape = (4, 2)
    tensors = {f"t.{dtype}": Raw(dtype, shape, b"\0" * DTYPES[dtype].nbytes(shape)) for dtype in DTYPE_BITS}
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    assert {entry.name: (entry.dtype, entry.shape) for entry in read_header(path).entries} == {
        name: (tensor.dtype, shape) for name, tensor in tensors.items()
    }
    assert read_tensors(path) == tensors


SPECS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(
        st.sampled_from(["U8", "BF16", "F16", "F32", "I64", "F64", "BOOL"]), st.lists(st.integers(0, 5), max_size=3)
    ),
    max_size=8,
)


@laws
@given(
    specs=SPECS,
    metadata=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), st.just("v"), max_size=3),
)
def test_written_header_is_canonical(tmp_path_factory, specs, metadata):
    """A header is sorted by falling dtype size and name, aligned, padded to 8, and the same for any order of input."""
    tensors = [(name, dtype, tuple(shape)) for name, (dtype, shape) in specs.items()]
    header, entries = build_header(tensors, metadata)
    assert build_header(tensors[::-1], dict(reversed(metadata.items()))) == (header, entries)
    assert len(header) % 8 == 0
    assert [(-DTYPE_BITS[entry.dtype], entry.name) for entry in entries] == sorted(
        (-DTYPE_BITS[dtype], name) for name, dtype, _ in tensors
    )
    assert all(entry.start % (DTYPE_BITS[entry.dtype] // 8) == 0 for entry in entries)
    path = tmp_path_factory.mktemp("header") / "x.safetensors"
    path.write_bytes(header + b"\0" * sum(entry.nbytes for entry in entries))
    read = read_header(path)
    key = lambda entry: (entry.start, entry.nbytes)  # noqa: E731 - empty tensors share a position
    assert sorted(read.entries, key=key) == sorted(entries, key=key)
    assert read.metadata == metadata
    assert set(read_tensors(path)) == set(specs)
    assert is_canonical(path)


def test_the_builders_of_these_tests_round_to_bf16():
    """The tests' own bf16 writer rounds to nearest even (literal bits)."""
    assert bf16([1.0, -2.0, 1.00390625, 1.01171875, 0.1]).tolist() == [0x3F80, 0xC000, 0x3F80, 0x3F82, 0x3DCD]
