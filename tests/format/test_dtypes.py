"""The table of element types: every type of every format, and what each is to us."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from splitquant.checkpoint.safetensors import DTYPE_BITS
from splitquant.format.decode import as_window
from splitquant.format.dtypes import DTYPE_OF_KIND, DTYPES

# Bits by the text of safetensors' own `Dtype` (safetensors/src/tensor.rs).
SAFETENSORS = {
    name: bits
    for bits, names in {
        4: ("F4",),
        6: ("F6_E2M3", "F6_E3M2"),
        8: ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"),
        16: ("I16", "U16", "F16", "BF16"),
        32: ("I32", "U32", "F32"),
        64: ("C64", "F64", "I64", "U64"),
    }.items()
    for name in names
}
FLOATS = [dtype for dtype in DTYPES.values() if dtype.kind is not None]
READ_BY_NUMPY = [dtype for dtype in DTYPES.values() if dtype.numpy]


def test_every_dtype_of_safetensors_is_known():
    """No file that the official library reads is refused for its dtypes, and no other is taken for one."""
    assert dict(DTYPE_BITS) == SAFETENSORS
    assert {name: dtype.bits for name, dtype in DTYPES.items() if dtype.safetensors} == SAFETENSORS


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype.torch], ids=lambda dtype: dtype.name)
def test_names_in_torch(dtype):
    torch = pytest.importorskip("torch")
    found = getattr(torch, dtype.torch, None)
    if found is None:
        pytest.skip(f"this PyTorch has no {dtype.torch}")
    assert 8 * found.itemsize == dtype.bits
    assert (found.is_floating_point, found.is_complex) == (
        dtype.name[0] in "FB" and dtype.name != "BOOL",
        dtype.name[0] == "C",
    )


def test_every_dtype_of_onnx_is_known():
    """But text, which is no number, and what is newer than INT2; as many bits as the onnx package says."""
    onnx = pytest.importorskip("onnx")
    known = {dtype.onnx: dtype for dtype in DTYPES.values() if dtype.onnx}
    numbered = {name for name, number in onnx.TensorProto.DataType.items() if number <= onnx.TensorProto.INT2}
    assert numbered - set(known) == {"UNDEFINED", "STRING"}
    assert len(known) == sum(bool(dtype.onnx) for dtype in DTYPES.values())
    for name, dtype in known.items():
        if dtype.numpy and dtype.name != "BF16":  # bf16 lies in an array as the bits that it has
            number = onnx.TensorProto.DataType.Value(name)
            assert onnx.helper.tensor_dtype_to_np_dtype(number) == np.dtype(dtype.numpy)


@pytest.mark.parametrize("dtype", READ_BY_NUMPY, ids=lambda dtype: dtype.name)
def test_types_in_arrays(dtype):
    found = np.dtype(dtype.numpy)
    assert 8 * found.itemsize == dtype.bits
    assert found == found.newbyteorder("<")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (8, 16), (2, 0, 3)], ids=str)
def test_bytes_of_a_tensor(dtype, shape):
    """LAW: as many bytes as hold its bits, and none is left over where elements are whole bytes."""
    weights = int(np.prod(shape, dtype=np.int64))
    assert dtype.nbytes(shape) == -(-weights * dtype.bits // 8)
    if dtype.bits % 8 == 0:
        assert dtype.nbytes(shape) == weights * dtype.bits // 8


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
def test_memory_of_a_window(dtype):
    """A weight takes its raw bytes, and those of the window that they become, unless these are the same."""
    raw = np.zeros(dtype.nbytes((6, 8)), np.uint8)
    window = as_window(raw, dtype.name, 6, 8)
    assert np.shares_memory(raw, window) == dtype.is_window
    taken = raw.nbytes + (0 if dtype.is_window else window.nbytes)
    assert Fraction(taken, 48) == dtype.window_bytes


def test_what_has_no_kind_has_no_window():
    assert not any(dtype.is_window for dtype in DTYPES.values() if dtype.kind is None)


def test_the_dtype_of_a_kind():
    """Weights of a kind are stored as floats of that very kind: neither wider nor narrower."""
    assert {kind: dtype.name for kind, dtype in DTYPE_OF_KIND.items()} == {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
    assert all(dtype.kind == kind and dtype.is_window for kind, dtype in DTYPE_OF_KIND.items())


@pytest.mark.parametrize(
    ("dtype", "kind"), [("BF16", "bf16"), ("F16", "fp16"), ("F32", "fp32"), ("F64", "fp32"), ("F8_E4M3", "bf16")]
)
def test_kinds(dtype, kind):
    """float64 is read as float32, fp8 as bf16."""
    assert DTYPES[dtype].kind == kind


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        DTYPES["F32"] = DTYPES["F16"]
