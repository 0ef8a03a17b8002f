"""What is known of a packed weight besides its planes, and the way from and to core's SplitTensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from splitquant.core.floats import Kind
from splitquant.core.rows import pack_row_scale
from splitquant.core.spec import QuantSpec
from splitquant.core.split import SplitTensor, level_planes, quantize_array
from splitquant.errors import TensorError
from splitquant.plan.planes import Geometry, Plane, geometry, planes_of

DTYPE_OF_KIND: dict[Kind, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KIND_OF_DTYPE: dict[torch.dtype, Kind] = {dtype: kind for kind, dtype in DTYPE_OF_KIND.items()}
_DTYPE_OF_PLANE = {
    "U8": torch.uint8,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I64": torch.int64,
}


@dataclass(frozen=True, slots=True)
class Packing:
    """How the planes of one weight are to be read (docs/format.md, section 1).

    shape: of the weight; axis: its output-channel axis; kind: the float it dequantizes to;
    stack: whether its first axis numbers independent matrices.
    """

    shape: tuple[int, ...]
    axis: int
    spec: QuantSpec
    kind: Kind
    stack: bool = False

    @property
    def geometry(self) -> Geometry:
        """The matrices it consists of."""
        return geometry(self.shape, self.axis, self.stack)

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The stored tensors that stand for it."""
        return planes_of(self.shape, self.axis, self.stack, self.kind, self.spec)

    def check(self, name: str, planes: dict[str, torch.Tensor]) -> None:
        """Raise TensorError, naming the plane, unless every plane is there with its dtype and shape."""
        for plane in self.planes:
            found = planes.get(plane.name)
            if found is None:
                raise TensorError(f"tensor '{name}.{plane.name}' is missing; the folder is incomplete: copy it again")
            expected = _DTYPE_OF_PLANE[plane.dtype]
            if found.dtype != expected or tuple(found.shape) != plane.shape:
                raise TensorError(
                    f"tensor '{name}.{plane.name}' is {found.dtype} {list(found.shape)}; expected {expected} "
                    f"{list(plane.shape)} by config.json: quantize the model again"
                )


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
    return {name: from_numpy(np.ascontiguousarray(plane)) for name, plane in planes.items() if plane is not None}
