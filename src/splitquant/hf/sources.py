"""The names, dtypes and shapes of what a checkpoint holds, from its headers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open

from splitquant.format.dtypes import DTYPE_OF_KIND, DTYPES
from splitquant.torch.packing import KIND_OF_TORCH


@dataclass(frozen=True, slots=True)
class Header:
    """One tensor of a checkpoint; dtype as in safetensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return DTYPES[self.dtype].nbytes(self.shape)


def headers_of(checkpoint_files: Iterable[Any] | None, model: Any) -> list[Header]:
    """Headers of all tensors; where the checkpoint is no safetensors, those of the model's own parameters, tied ones once."""
    files = [str(file) for file in checkpoint_files or ()]
    if files and all(file.endswith(".safetensors") for file in files):
        return [header for file in files for header in _file_headers(file)]
    return [
        Header(name, DTYPE_OF_KIND[KIND_OF_TORCH[parameter.dtype]].name, tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if parameter.dtype in KIND_OF_TORCH and name not in model.all_tied_weights_keys
    ]


def _file_headers(file: str) -> Iterator[Header]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - an opened file is no mapping
            part = opened.get_slice(name)
            yield Header(name, part.get_dtype(), tuple(part.get_shape()))
