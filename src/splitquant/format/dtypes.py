"""Every element type that a model may hold, in one table: what the file formats and frameworks call it, and what it is to us."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from splitquant.core.floats import FLOATS, Kind


@dataclass(frozen=True, slots=True)
class Dtype:
    """The facts of one element type.

    Args:
        name: what safetensors calls it; where safetensors has none, what it would.
        bits: of one element; below 8 they are packed.
        kind: the kind of float that its weights are quantized from and dequantize to; None: it is no float that can be.
        numpy: the type in which its elements lie in an array, little-endian ("" where NumPy has none).
        torch, onnx: its names there ("" where there is none).
        safetensors: whether safetensors files may hold it.
    """

    name: str
    bits: int
    kind: Kind | None = None
    numpy: str = ""
    torch: str = ""
    onnx: str = ""
    safetensors: bool = True

    def nbytes(self, shape: Sequence[int]) -> int:
        """The bytes of a tensor of this type."""
        return -(-math.prod(shape) * self.bits // 8)

    @property
    def is_window(self) -> bool:
        """Whether its bytes are what the kernels work on: the values of its kind themselves, neither wider nor narrower."""
        return self.kind is not None and self.bits == 8 * FLOATS[self.kind].dtype.itemsize

    @property
    def window_bytes(self) -> int:
        """Memory that a weight takes as raw bytes and, where it differs from them, as a window."""
        assert self.kind is not None
        return self.bits // 8 + (0 if self.is_window else FLOATS[self.kind].dtype.itemsize)


_TABLE = (
    Dtype("F64", 64, "fp32", "<f8", "float64", "DOUBLE"),  # rounded to float32 first
    Dtype("F32", 32, "fp32", "<f4", "float32", "FLOAT"),
    Dtype("F16", 16, "fp16", "<f2", "float16", "FLOAT16"),
    Dtype("BF16", 16, "bf16", "<u2", "bfloat16", "BFLOAT16"),
    Dtype("F8_E4M3", 8, "bf16", "", "float8_e4m3fn", "FLOAT8E4M3FN"),  # bf16 holds every fp8 number exactly
    Dtype("F8_E5M2", 8, "bf16", "", "float8_e5m2", "FLOAT8E5M2"),
    Dtype("F8_E8M0", 8, None, "", "float8_e8m0fnu", "FLOAT8E8M0"),
    Dtype("F6_E2M3", 6),
    Dtype("F6_E3M2", 6),
    Dtype("F4", 4, None, "", "", "FLOAT4E2M1"),
    Dtype("C64", 64, None, "<c8", "complex64", "COMPLEX64"),
    Dtype("I64", 64, None, "<i8", "int64", "INT64"),
    Dtype("I32", 32, None, "<i4", "int32", "INT32"),
    Dtype("I16", 16, None, "<i2", "int16", "INT16"),
    Dtype("I8", 8, None, "i1", "int8", "INT8"),
    Dtype("U64", 64, None, "<u8", "uint64", "UINT64"),
    Dtype("U32", 32, None, "<u4", "uint32", "UINT32"),
    Dtype("U16", 16, None, "<u2", "uint16", "UINT16"),
    Dtype("U8", 8, None, "u1", "uint8", "UINT8"),
    Dtype("BOOL", 8, None, "?", "bool", "BOOL"),
    Dtype("C128", 128, None, "<c16", "complex128", "COMPLEX128", safetensors=False),
    Dtype("F8_E4M3FNUZ", 8, None, "", "float8_e4m3fnuz", "FLOAT8E4M3FNUZ", safetensors=False),
    Dtype("F8_E5M2FNUZ", 8, None, "", "float8_e5m2fnuz", "FLOAT8E5M2FNUZ", safetensors=False),
    Dtype("I4", 4, None, "", "", "INT4", safetensors=False),
    Dtype("U4", 4, None, "", "", "UINT4", safetensors=False),
    Dtype("I2", 2, None, "", "", "INT2", safetensors=False),
    Dtype("U2", 2, None, "", "", "UINT2", safetensors=False),
)
DTYPES: Mapping[str, Dtype] = MappingProxyType({dtype.name: dtype for dtype in _TABLE})
DTYPE_OF_KIND: Mapping[Kind, Dtype] = MappingProxyType(
    {dtype.kind: dtype for dtype in _TABLE if dtype.kind is not None and dtype.is_window}
)
"""The type in which weights of a kind are stored as floats."""
