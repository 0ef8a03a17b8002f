"""From planes to weights: core's kernels on the CPU, plain tensor operations elsewhere, and both give the same bits."""

from __future__ import annotations

import torch

from splitquant.core.interface import Planes as PackedPlanes
from splitquant.core.kernels import kernels
from splitquant.core.rows import RowScales, unpack_row_scale
from splitquant.core.spec import QuantSpec
from splitquant.core.split import levels_from
from splitquant.format.weight import Weight
from splitquant.torch.packing import KIND_OF_TORCH, TORCH_OF_KIND, from_numpy, to_numpy

Planes = dict[str, torch.Tensor]
LEVEL_PLANES = ("scale", "offset", "levels")


def decode(planes: Planes, weight: Weight, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The whole weight, of `weight.shape`, rounded to `weight.kind` and then to `dtype` (None: not again)."""
    g = weight.geometry
    if not weight.stack:
        return _fold(decode_rows(planes, weight, dtype), g.matrix_shape, g.axis)
    matrices = []
    for index in range(g.count):
        part = {name: plane[index] for name, plane in planes.items() if name != "shape"}
        matrices.append(_fold(decode_rows(part, weight, dtype), g.matrix_shape, g.axis))
    return torch.stack(matrices)


def decode_rows(planes: Planes, weight: Weight, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Any rows of a weight's matrix, `[rows, cols]`: as many as `codes` has."""
    stored = TORCH_OF_KIND[weight.kind]
    wanted = stored if dtype is None else dtype
    # Float32 is the last step before every rounding, so only a 16-bit weight has to be rounded to its own dtype first.
    first = wanted if weight.kind == "fp32" and wanted in KIND_OF_TORCH else stored
    kernels_can = planes["codes"].device.type == "cpu" and not _is_traced()
    decode_on_device = _decode_with_kernels if kernels_can else decode_with_torch
    return decode_on_device(planes, weight.spec, weight.geometry.cols, first).to(wanted)


def _is_traced() -> bool:
    """Whether operations are being recorded (torch.export, torch.compile, torch.jit.trace, torch.func), which kernels would escape."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None  # noqa: SLF001 - as torch.jit does
        or torch._C._functorch.peek_interpreter_stack() is not None  # noqa: SLF001 - transforms of torch.func
    )


def _decode_with_kernels(planes: Planes, spec: QuantSpec, cols: int, dtype: torch.dtype) -> torch.Tensor:
    codes = to_numpy(planes["codes"])
    if len(codes) == 0:
        return torch.empty(0, cols, dtype=dtype)
    clusters = planes.get("clusters")
    return from_numpy(
        kernels().dequantize(
            PackedPlanes.of(spec, cols, codes, None if clusters is None else to_numpy(clusters)),
            levels_from(spec, {name: to_numpy(planes[name]) for name in LEVEL_PLANES if name in planes})[2],
            _row_scales(planes, spec, cols),
            KIND_OF_TORCH[dtype],
        )
    )


def _row_scales(planes: Planes, spec: QuantSpec, cols: int) -> RowScales | None:
    row_scale, packed = planes.get("row_scale"), planes.get("zero_points")
    if row_scale is None:
        return None
    scale = unpack_row_scale(to_numpy(row_scale))
    zero = None if packed is None else kernels().unpack(to_numpy(packed), scale.shape[1], spec.bits)
    return RowScales(spec.group_size(cols), scale, zero=zero, bits=spec.bits)


def decode_with_torch(planes: Planes, spec: QuantSpec, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """The same by tensor operations, on the device of the planes."""
    index = _unpack(planes["codes"], cols, spec.code_bits)
    if "clusters" in planes:
        index = index + _unpack(planes["clusters"], cols, spec.cluster_bits) * (1 << spec.bits)
    values = _table(planes, spec).reshape(-1)[index]
    if "zero_points" in planes:
        zero = unpacked_zero_points(planes, spec).float()
        values = values - _per_weight(zero * (2.0 ** (1 - spec.bits)), spec, cols)
    if "row_scale" in planes:
        values = values * _per_weight(planes["row_scale"].float(), spec, cols)
    return values.to(dtype)


def unpacked_zero_points(planes: Planes, spec: QuantSpec) -> torch.Tensor:
    """The zero_points of rows that have their own, int64 `[rows, groups]`."""
    return _unpack(planes["zero_points"], planes["row_scale"].shape[1], spec.bits)


def _per_weight(numbers: torch.Tensor, spec: QuantSpec, cols: int) -> torch.Tensor:
    return numbers.repeat_interleave(spec.group_size(cols), dim=1)[:, :cols]


def _table(planes: Planes, spec: QuantSpec) -> torch.Tensor:
    """All levels, as `core.affine.level_table` and `own_levels` have them."""
    if "levels" in planes:
        return planes["levels"]
    if spec.own_zero_points:
        return torch.arange(1 << spec.bits, dtype=torch.float32, device=planes["codes"].device) * 2.0 ** (1 - spec.bits)
    scale, offset = planes["scale"], planes["offset"]
    code = torch.arange(1 << spec.bits, dtype=torch.float32, device=scale.device)
    table = scale[:, None] * code + offset[:, None]
    if not spec.facts.additive:
        return table
    total = table[0]
    for part in range(1, spec.clusters):  # the first part's code is in the lowest bits
        total = (table[part][:, None] + total).reshape(-1)
    return total


def _unpack(plane: torch.Tensor, cols: int, bits: int) -> torch.Tensor:
    """The values of a packed plane, int64 `[rows, cols]`: a value lies in one byte or in two neighbours."""
    start = torch.arange(cols, device=plane.device) * bits
    wide = torch.nn.functional.pad(plane, (0, 1)).long()
    byte = start // 8
    word = wide[:, byte] | (wide[:, byte + 1] * 256)
    return torch.bitwise_right_shift(word, start % 8) & ((1 << bits) - 1)  # by its name: ONNX export knows no `>>`


def _fold(matrix: torch.Tensor, shape: tuple[int, ...], axis: int) -> torch.Tensor:
    """The tensor of `shape` whose matrix with `axis` in front this is."""
    if axis == 0:
        return matrix.reshape(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return matrix.reshape(moved).movedim(0, axis).contiguous()
