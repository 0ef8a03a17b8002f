"""The bytes on disk, written out by hand from docs/format.md."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitquant.core.kernels import kernels
from splitquant.core.spec import QuantSpec
from splitquant.core.split import quantize_array


@dataclass(frozen=True)
class Packed:
    """A row of values of some bits, and its bytes."""

    name: str
    bits: int
    values: tuple[int, ...]
    row: bytes


PACKED = [
    Packed("1 bit", 1, (1, 0, 0, 0, 0, 0, 0, 0, 1), b"\x01\x01"),
    Packed("2 bits", 2, (1, 2, 3, 0), b"\x39"),
    Packed("2 bits, one left over", 2, (1, 2, 3, 0, 3), b"\x39\x03"),
    Packed("2 bits, one value", 2, (2,), b"\x02"),
    Packed("3 bits", 3, (1, 2, 3, 4, 5, 6, 7, 0), b"\xd1\x58\x1f"),
    Packed("3 bits, one left over", 3, (1, 2, 3, 4, 5, 6, 7, 0, 7), b"\xd1\x58\x1f\x07"),
    Packed("3 bits, a value over a byte's end", 3, (0, 0, 7), b"\xc0\x01"),
    Packed("4 bits", 4, (0x1, 0x2, 0xE, 0xF), b"\x21\xfe"),
    Packed("4 bits, one left over", 4, (0x1, 0x2, 0xF), b"\x21\x0f"),
    Packed("5 bits", 5, (1, 2, 3, 4, 5, 6, 7, 31), b"\x41\x0c\x52\xcc\xf9"),
    Packed("5 bits, three values", 5, (31, 0, 31), b"\x1f\x7c"),
    Packed("6 bits", 6, (1, 2, 3, 63), b"\x81\x30\xfc"),
    Packed("7 bits", 7, (1, 127, 0), b"\x81\x3f\x00"),
    Packed("8 bits", 8, (0, 127, 255), b"\x00\x7f\xff"),
]


@pytest.mark.parametrize("case", PACKED, ids=lambda case: case.name)
def test_packed_bytes(case):
    """Value j lies at bit j * bits of its row, least significant bit first, and rows begin at bytes."""
    values = np.array([case.values, case.values], np.uint8)
    plane = kernels().pack(values, case.bits)
    assert plane.dtype == np.uint8
    assert [row.tobytes() for row in plane] == [case.row, case.row]
    assert np.array_equal(kernels().unpack(plane, len(case.values), case.bits), values)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_pack_by_definition(bits, rows, cols, seed):
    """A row read as one little-endian integer is the sum of its values shifted to their places; the rest is 0."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows, cols), dtype=np.uint8)
    plane = kernels().pack(values, bits)
    assert plane.shape == (rows, -(-cols * bits // 8))
    for row, packed in zip(values.tolist(), plane, strict=True):
        assert int.from_bytes(packed.tobytes(), "little") == sum(v << (j * bits) for j, v in enumerate(row))
    assert np.array_equal(kernels().unpack(plane, cols, bits), values)


def test_whole_tensor_fused():
    """The planes of a small fused tensor, worked out by hand: two clusters of own range, scale 1/2 and 1."""
    array = np.array([[-8, -7.5, -7, -6.5, 1, 2, 4]], np.float32)
    split = quantize_array(array, QuantSpec(bits=2, clusters=2, granularity="tensor"))
    assert split.scale.tolist() == [0.5, 1.0]
    assert split.offset.tolist() == [-8.0, 1.0]
    assert split.clusters.tobytes() == bytes([0b1110000])
    assert split.codes.tobytes() == bytes([0b11100100, 0b110100])
    assert split.row_scale is None
    assert np.array_equal(split.dequantize(), array)
    assert split.figures.noise == 0


def test_whole_tensor_with_row_scales():
    """The planes of a small symmetric tensor with a scale per channel: rows of one shape and two sizes are equal codes."""
    array = np.array([[-3, -2, -1, 0, 1, 2, 3], [24, -24, 0, 8, -8, 16, -16]], np.float16)
    split = quantize_array(array, QuantSpec(bits=3, clusters=1, symmetric=True))
    step = 43691 / 131072  # 1/3 rounded up to 16 significant bits
    assert split.scale.tolist() == [step]
    assert split.offset.tolist() == [-4 * step]
    assert split.row_scale.tolist() == [[3.0], [24.0]]
    assert split.clusters is None
    codes = [[1, 2, 3, 4, 5, 6, 7], [7, 1, 4, 5, 3, 6, 2]]
    assert split.unpacked_codes().tolist() == codes
    assert [int.from_bytes(row.tobytes(), "little") for row in split.codes] == [
        sum(v << (3 * j) for j, v in enumerate(row)) for row in codes
    ]
    assert np.array_equal(split.dequantize("fp16"), array)


def test_whole_tensor_residual():
    """One plane of joint codes: the first part in the low bits, the second above it."""
    array = np.array([[-3, -1.5, 0, 1.5, 3]], np.float32)
    split = quantize_array(array, QuantSpec(2, 2, "residual", "tensor", symmetric=True))
    assert split.scale.tolist() == [3.0, 1.5]
    assert split.offset.tolist() == [-6.0, -3.0]
    assert split.clusters is None
    assert split.codes.tobytes() == bytes([0x69, 0x7A, 0x0B])
    assert [part.tolist() for part in split.integer_parts()] == [[[1, 2, 2, 3, 3]], [[2, 1, 2, 1, 2]]]
    assert np.array_equal(split.dequantize(), array)


def test_whole_tensor_lloyd():
    """The levels themselves are stored, ascending over clusters and codes."""
    array = np.array([[1, 1, 2, 5, -4, 9, 7, 6, 8]], np.float16)
    split = quantize_array(array, QuantSpec(2, 2, "lloyd", "tensor"))
    assert split.levels.tolist() == [[-4, 1, 2, 5], [6, 7, 8, 9]]
    assert split.codes.tobytes() == bytes([0b11100101, 0b00011100, 0b10])
    assert split.clusters.tobytes() == bytes([0b11100000, 0b1])
    assert np.array_equal(split.dequantize("fp16"), array)
