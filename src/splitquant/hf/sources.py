"""The names, dtypes and shapes of what a checkpoint holds, from its headers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from safetensors import safe_open

from splitquant.plan.planes import SAFETENSORS_DTYPE
from splitquant.torch.packing import KIND_OF_DTYPE

_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16, "I16": 16, "U16": 16}


@dataclass(frozen=True, slots=True)
class Header:
    """One tensor of a checkpoint; dtype as in safetensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * _BITS.get(self.dtype, 8) // 8


def headers_of(checkpoint_files: Iterable[Any] | None, model: Any) -> list[Header]:
    """Headers of all tensors; where the checkpoint is no safetensors, those of the model's own parameters, tied ones once."""
    files = [str(file) for file in checkpoint_files or ()]
    if files and all(file.endswith(".safetensors") for file in files):
        return [header for file in files for header in _file_headers(file)]
    return [
        Header(name, SAFETENSORS_DTYPE[KIND_OF_DTYPE[parameter.dtype]], tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if parameter.dtype in KIND_OF_DTYPE and name not in model.all_tied_weights_keys
    ]


def _file_headers(file: str) -> Iterator[Header]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - an opened file is no mapping
            part = opened.get_slice(name)
            yield Header(name, part.get_dtype(), tuple(part.get_shape()))
