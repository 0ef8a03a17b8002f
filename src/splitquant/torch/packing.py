"""Planes as tensors: their dtypes and shapes, and the way from and to core's SplitTensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from splitquant.core.floats import Kind
from splitquant.core.kernels import kernels
from splitquant.core.rows import pack_row_scale
from splitquant.core.spec import QuantSpec
from splitquant.core.split import SplitTensor, level_planes, quantize_array
from splitquant.errors import TensorError
from splitquant.format.damage import damage_of, damage_of_ids
from splitquant.format.dtypes import DTYPE_OF_KIND, DTYPES
from splitquant.format.planes import Plane, plane_key
from splitquant.format.weight import Weight

TORCH_OF_KIND: dict[Kind, torch.dtype] = {kind: getattr(torch, dtype.torch) for kind, dtype in DTYPE_OF_KIND.items()}
KIND_OF_TORCH: dict[torch.dtype, Kind] = {dtype: kind for kind, dtype in TORCH_OF_KIND.items()}
_NAMES = {getattr(torch, dtype.torch): dtype.name for dtype in DTYPES.values() if hasattr(torch, dtype.torch or "-")}


def dtype_name(dtype: torch.dtype) -> str:
    """What our tables call a dtype, or PyTorch's own name where they do not know it."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


def check_planes(name: str, weight: Weight, planes: dict[str, torch.Tensor]) -> None:
    """Raise TensorError, naming the plane, unless every plane of a weight is there with its dtype and shape, and undamaged."""
    for plane in weight.planes:
        found = planes.get(plane.name)
        if found is None:
            raise TensorError(
                f"tensor {plane_key(name, plane.name)!r} is missing; the folder is incomplete: copy it again"
            )
        expected = getattr(torch, DTYPES[plane.dtype].torch)
        if found.dtype != expected or tuple(found.shape) != plane.shape:
            raise TensorError(
                f"tensor {plane_key(name, plane.name)!r} is {found.dtype} {list(found.shape)}; expected {expected} "
                f"{list(plane.shape)} by config.json: quantize the model again"
            )
        damage = "" if found.is_meta else _damage(plane, found, weight)
        if damage:
            raise TensorError(
                f"tensor {plane_key(name, plane.name)!r} {damage}; the file is damaged: copy it or quantize again"
            )


def _damage(plane: Plane, found: torch.Tensor, weight: Weight) -> str:
    if found.dtype.is_floating_point:
        return damage_of(plane.name, found.detach().float().cpu().numpy())
    if plane.name == "clusters":
        g = weight.geometry
        return damage_of_ids(found.detach().cpu().numpy().reshape(g.count * g.rows, -1), g.cols, weight.spec)
    return ""


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A CPU tensor as the array that core takes (bf16 as its uint16 bits); shares its memory where it is contiguous."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: NDArray[Any] = tensor.numpy()
    return array


def from_numpy(array: NDArray[Any]) -> torch.Tensor:
    """The inverse of `to_numpy`: uint16 is taken for the bits of bf16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def float_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A float tensor of any device as the kernels take it: float64 is rounded to float32."""
    held = tensor.detach().cpu()
    return to_numpy(held.float() if held.dtype == torch.float64 else held)


def quantize_tensor(tensor: torch.Tensor, spec: QuantSpec, axis: int = 0) -> SplitTensor:
    """Quantize a float tensor of any device (bf16, fp16, fp32, fp64); TensorError for NaN, infinity or another dtype."""
    if not tensor.is_floating_point():
        raise TensorError(f"dtype is {tensor.dtype}; expected bfloat16, float16, float32 or float64")
    return quantize_array(to_numpy(tensor.cpu()), spec, axis)


def planes_from(split: SplitTensor) -> dict[str, torch.Tensor]:
    """The planes of a SplitTensor as CPU tensors in their stored dtypes, without `shape`."""
    planes: dict[str, NDArray[Any] | None] = {"codes": split.codes, "clusters": split.clusters}
    planes.update((str(name), plane) for name, plane in level_planes(split.spec, split).items())
    if split.row_scale is not None:
        planes["row_scale"] = pack_row_scale(split.row_scale, split.row_scale_kind)
    if split.zero is not None:
        planes["zero_points"] = kernels().pack(np.ascontiguousarray(split.zero), split.spec.bits)
    return {name: from_numpy(np.ascontiguousarray(plane)) for name, plane in planes.items() if plane is not None}
