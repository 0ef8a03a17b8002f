"""What a quantized tensor is stored as, and random tensors of every dtype."""

from __future__ import annotations

import numpy as np

from builders.folders import (
    Raw,
    normal,
    raw,
)
from splitquant.core.reference import NumpyKernels
from splitquant.core.rows import pack_row_scale
from splitquant.core.split import quantize_array
from splitquant.format.decode import as_window
from splitquant.storage import memory

pack = NumpyKernels().pack


def expected_planes(name, tensor, spec, *, axis=0, stack=False) -> dict[str, Raw]:
    """What a quantized tensor is stored as, from `quantize_array` of the whole array in memory."""
    tensor = raw(tensor)
    array = as_window(np.frombuffer(tensor.data, np.uint8), tensor.dtype, 1, -1).reshape(tensor.shape)
    parts = [quantize_array(part, spec, axis - 1) for part in array] if stack else [quantize_array(array, spec, axis)]
    dtype = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}[parts[0].row_scale_kind]

    def plane(values, dtype):
        values = np.stack(values) if stack else values[0]
        return Raw(dtype, values.shape, np.ascontiguousarray(values).tobytes())

    planes = {
        f"{name}.codes": plane([part.codes for part in parts], "U8"),
        f"{name}.shape": raw(np.array(tensor.shape, np.int64)),
    }
    if spec.zero_points == "own":
        zeros = [pack(part.zero, spec.bits) for part in parts]
        planes[f"{name}.zero_points"] = plane(zeros, "U8")
    levels = () if spec.zero_points == "own" else ("scale", "offset")
    for level in ("levels",) if spec.strategy == "lloyd" else levels:
        planes[f"{name}.{level}"] = plane([getattr(part, level) for part in parts], "F32")
    if spec.cluster_bits:
        planes[f"{name}.clusters"] = plane([part.clusters for part in parts], "U8")
    if spec.granularity.kind != "tensor":
        planes[f"{name}.row_scale"] = plane(
            [pack_row_scale(part.row_scale, part.row_scale_kind) for part in parts], dtype
        )
    return planes


def fp8(seed, *shape):
    """Random finite fp8 numbers, by their bits, that are finite in both formats."""
    return np.random.default_rng(seed).choice(np.r_[0:0x70, 0x80:0xF0].astype(np.uint8), shape)


def stored(tensor_dtype, seed, *shape) -> Raw:
    """A random tensor of a safetensors dtype."""
    if tensor_dtype.startswith("F8"):
        return raw(fp8(seed, *shape), tensor_dtype)
    return raw(normal(seed, *shape, dtype={"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}[tensor_dtype]))


def tiny_windows(monkeypatch, nbytes):
    """Let a thread hold so little that tensors are cut into windows of about that many bytes."""
    monkeypatch.setattr(memory, "WINDOW_BYTES", nbytes)
    monkeypatch.setattr(memory, "WHOLE_BYTES", nbytes)
