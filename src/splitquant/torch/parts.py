"""A weight as the sum of k weights, and back: disjoint ones (masks of the original values), or residual ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from splitquant.core.affine import level_table
from splitquant.core.error import ErrorFigures
from splitquant.core.kernels import kernels
from splitquant.core.minmax import minmax_rounded
from splitquant.core.rows import from_matrix, to_matrix
from splitquant.core.spec import QuantSpec
from splitquant.core.split import SplitTensor
from splitquant.torch.packed import PackedWeight
from splitquant.torch.packing import KIND_OF_TORCH, from_numpy, to_numpy


def float_parts(weight: nn.Parameter, split: SplitTensor) -> list[nn.Parameter]:
    """The original values of each cluster, zero elsewhere: k parameters of the weight's shape, dtype and device.

    LAW: every weight, `-0.0` too, is in one part with its own bits, and `+0.0` in all others, so `rejoin` is exact.
    """
    cluster = torch.from_numpy(split.unpacked_clusters()).to(weight.device)
    original = weight.detach()
    nothing = torch.zeros((), dtype=original.dtype, device=original.device)
    # empty_like keeps the memory format (channels_last), which `where` with a contiguous mask would not.
    return [
        nn.Parameter(
            torch.empty_like(original).copy_(torch.where(cluster == c, original, nothing)),
            requires_grad=weight.requires_grad,
        )
        for c in range(split.spec.clusters)
    ]


def residual_parts(weight: nn.Parameter, spec: QuantSpec, axis: int) -> tuple[list[nn.Parameter], ErrorFigures]:
    """`Q(W)`, then Q of what is left, and so on; the last part is the rest. And what quantizing that rest too will lose.

    LAW: where the weight is float32 or float64, a min-max quantizer of the same bits, granularity and symmetry gives every
    part but the last back unchanged; in 16 bits it finds the same codes, and values within a rounding of the dtype.
    LAW: every subtraction is exact unless a weight near half a step meets a level that was rounded to 16 bits, and then within
    one rounding; so `rejoin` gives the weight back, bit for bit or within one rounding.
    """
    rest, parts = weight.detach(), []
    kind = KIND_OF_TORCH.get(weight.dtype, "fp32")

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        matrix: Any = to_matrix(to_numpy(tensor.to("cpu", torch.float32)), axis)
        values = from_matrix(minmax_rounded(matrix, spec, kind), tuple(tensor.shape), axis)
        return torch.empty_like(tensor).copy_(from_numpy(values))  # in its memory format

    for _ in range(spec.clusters - 1):
        part = rounded(rest)
        parts.append(part)
        rest = rest - part
    parts.append(rest.clone())
    miss = rest.double() - rounded(rest.float()).double()
    signal, noise = float(weight.detach().double().square().sum()), float(miss.square().sum())
    figures = ErrorFigures(weight.numel(), signal, noise, float(miss.abs().max()))
    return [nn.Parameter(part, requires_grad=weight.requires_grad) for part in parts], figures


def integer_parts(split: SplitTensor, source: torch.Tensor) -> list[PackedWeight]:
    """The k integer weights of a tensor whose grids hold zero: packed codes, one scale and one zero_point each.

    LAW: the decoded parts are disjoint and sum to `split.dequantize()` exactly; residual ones, which all hold every weight,
    within float32 rounding.
    """
    spec = replace(split.spec, clusters=1, layout="parallel")
    if spec.own_zero_points:  # a layer that was not split: it is its one part
        weight = PackedWeight.from_split(replace(split, spec=spec, figures=None), source.dtype, source.dtype)
        weight.to(source.device)
        return [weight]
    packed = []
    for c, codes in enumerate(split.integer_parts()):
        plane: Any = to_matrix(codes, split.axis)
        scale, offset = split.scale[c : c + 1].copy(), split.offset[c : c + 1].copy()
        part = replace(
            split,
            spec=spec,
            codes=kernels().pack(np.ascontiguousarray(plane), spec.bits),
            clusters=None,
            scale=scale,
            offset=offset,
            levels=level_table(spec, scale, offset),
            row_scale=None if split.row_scale is None else split.row_scale.copy(),  # parts share no memory
            figures=None,
        )
        weight = PackedWeight.from_split(part, source.dtype, source.dtype)
        weight.to(source.device)
        packed.append(weight)
    return packed


def values(weights: Sequence[nn.Parameter | PackedWeight]) -> list[torch.Tensor]:
    """Weights as tensors, decoded where they are packed, by us or (torchao's tensors) by another library."""
    return [weight.dequantize() if _is_packed(weight) else weight for weight in weights]  # type: ignore[misc]


def _is_packed(weight: object) -> bool:
    return isinstance(weight, PackedWeight) or is_traceable_wrapper_subclass(weight)


def join(weights: Sequence[nn.Parameter | PackedWeight]) -> torch.Tensor:
    """The sum of parts as PyTorch adds them, with gradients."""
    total, *others = values(weights)
    for other in others:
        total = total + other
    return total


def rejoin(weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The weight that parts were cut from, and at how many places more than one part holds a number.

    Where one part does, its bits are taken. Elsewhere (residual parts, or a split model was trained) the sum is, in float64,
    rounded once. The last parts are added first: what residual parts were taken from, in exact steps.
    """
    found = weights[0].detach()
    holders = (found != 0).to(torch.uint8)
    for weight in weights[1:]:
        other = weight.detach()
        found = torch.where((other != 0) | ((found == 0) & other.signbit()), other, found)
        holders += other != 0
    overlap = holders > 1
    if overlap.any():
        total = torch.zeros(found.shape, dtype=torch.float64, device=found.device)
        for weight in reversed(weights):
            total += weight.detach()
        found = torch.where(overlap, total.to(found.dtype), found)
    return found, int(overlap.sum())
