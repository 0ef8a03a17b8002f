"""What the split is compared with: plain linear grids, NF4 and HQQ, with every stored bit counted.

A tensor comes as float32 `[rows, ...]` and leaves as `Stored`. Scales are float16 here, and what a layout needs in padding
is not counted: where there is a choice, it is the peer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import pad

Form = Literal["symmetric", "min-max", "clipped"]
FLOAT16 = 16
SHRINKS = tuple(1 - step / 20 for step in range(15))
NF4_BLOCK, NF4_SECOND_BLOCK = 64, 256


@dataclass(frozen=True)
class Stored:
    """The values that are left of a tensor, float32 of its shape, and the bits they take in all."""

    values: torch.Tensor
    bits: int


def half(x: torch.Tensor) -> torch.Tensor:
    """A scale as float16 keeps it."""
    return x.half().float()


def blocks_of(weight: torch.Tensor, size: int) -> torch.Tensor:
    """The rows of a tensor in blocks of `size` values, `[blocks, size]`; the last block of a row is filled up with zeros."""
    rows = weight.flatten(1)
    return pad(rows, (0, -rows.shape[1] % size)).reshape(-1, size)


def unblocked(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `blocks_of`."""
    cols = shape[1:].numel()
    return blocks.reshape(shape[0], -1)[:, :cols].reshape(shape)


def symmetric(x: torch.Tensor, bits: int) -> torch.Tensor:
    """One scale per block and all 2**bits codes, as llama.cpp's Q4_0 has it: the largest |w| is code -2**(bits - 1)."""
    top = 1 << (bits - 1)
    largest = x.gather(1, x.abs().argmax(1, keepdim=True))
    scale = half(largest / -top)
    safe = torch.where(scale == 0, 1, scale)
    return torch.clamp(torch.round(x / safe), -top, top - 1) * scale


def min_max(x: torch.Tensor, bits: int, shrink: float = 1.0) -> torch.Tensor:
    """A scale and an integer zero_point of `bits` bits per block; the range is that of the values, and holds 0."""
    top = (1 << bits) - 1
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = half((high - low) * (shrink / top)).clamp(min=2.0**-24)
    zero = torch.clamp(torch.round(-low * shrink / scale), 0, top)
    return (torch.clamp(torch.round(x / scale) + zero, 0, top) - zero) * scale


def clipped(x: torch.Tensor, bits: int) -> torch.Tensor:
    """`min_max` with the range of each block shrunk as much as lowers its squared error most."""
    best = min_max(x, bits)
    error = (x - best).square().sum(1, keepdim=True)
    for shrink in SHRINKS[1:]:
        trial = min_max(x, bits, shrink)
        found = (x - trial).square().sum(1, keepdim=True)
        best, error = torch.where(found < error, trial, best), torch.minimum(error, found)
    return best


def plain(weight: torch.Tensor, bits: int, granularity: str, form: Form) -> Stored:
    """One linear grid per tensor, channel or `group:N`."""
    whole = weight.reshape(1, -1) if granularity == "tensor" else weight.flatten(1)
    size = int(granularity.removeprefix("group:")) if granularity.startswith("group:") else whole.shape[1]
    blocks = blocks_of(whole, min(size, whole.shape[1]))
    values = {"symmetric": symmetric, "min-max": min_max, "clipped": clipped}[form](blocks, bits)
    zero_point = 0 if form == "symmetric" else bits
    stored = bits * weight.numel() + len(blocks) * (FLOAT16 + zero_point)
    return Stored(unblocked(values, whole.shape).reshape(weight.shape), stored)


def nf4(weight: torch.Tensor, *, double: bool) -> Stored:
    """NF4 in torchao's code: 16 fixed levels times the largest |w| of 64 neighbouring values.

    double: these largest values on 8 bits, with a float32 scale for each 256 of them and a float32 mean for the tensor
    (QLoRA's double quantization), instead of float16.
    """
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import NF4Tensor

    flat = weight.reshape(-1)
    padded = pad(flat, (0, -len(flat) % (NF4_BLOCK * NF4_SECOND_BLOCK)))
    made = NF4Tensor.from_tensor(padded, NF4_BLOCK, NF4_SECOND_BLOCK)
    blocks = -(-len(flat) // NF4_BLOCK)
    if double:
        values = made.get_original_weight()[: len(flat)]
        stored = 4 * len(flat) + 8 * blocks + 32 * -(-blocks // NF4_SECOND_BLOCK) + 32
    else:
        grouped = padded.reshape(-1, NF4_BLOCK)
        largest = half(grouped.abs().amax(1, keepdim=True))
        levels = made.nf4.float()
        code = torch.bucketize(grouped / torch.where(largest == 0, 1, largest), (levels[1:] + levels[:-1]) / 2)
        values = (levels[code] * largest).reshape(-1)[: len(flat)]
        stored = 4 * len(flat) + FLOAT16 * blocks
    return Stored(values.reshape(weight.shape), stored)


def hqq(weight: torch.Tensor, bits: int, group: int) -> Stored:
    """HQQ's own quantizer and optimizer, groups along the input axis; its packed codes, float16 scales and zeros counted."""
    from hqq.core.quantize import Quantizer

    flat = weight.reshape(-1)
    padded = pad(flat, (0, -len(flat) % (8 * group))).reshape(-1, group)  # eight groups fill whole words
    packed, meta = Quantizer.quantize(padded, nbits=bits, group_size=group, axis=1, device="cpu")
    meta |= {"compute_dtype": torch.float32, "scale": half(meta["scale"]), "zero": half(meta["zero"])}
    values = Quantizer.dequantize(packed, meta).reshape(-1)[: len(flat)]
    stored = 8 * packed.nbytes + FLOAT16 * (meta["scale"].numel() + meta["zero"].numel())
    return Stored(values.reshape(weight.shape), stored * len(flat) // padded.numel())
