"""The bound on the rounding errors of a split layer, as docs/torch.md states it."""

from __future__ import annotations

import copy

import torch

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def bound(layer, x, k):
    """docs/torch.md: how far the split layer may be from the layer, per output, whatever the order of summation.

    Both add n products and a bias and round; the split one does so k times and adds k outputs. 16-bit layers add in float32,
    but for transposed convolutions.
    """
    absolute = copy.deepcopy(layer).double()
    for parameter in absolute.parameters():
        parameter.data.abs_()
    size = absolute(x.double().abs())
    n = layer.weight.numel() // min(layer.weight.shape[:2])  # at least the products of one output
    unit = UNIT[x.dtype]
    summing = unit if "Transpose" in type(layer).__name__ else min(unit, 2.0**-24)
    return (2 * (n + k) * summing + 2 * k * unit) * size + 2 * k * torch.finfo(x.dtype).smallest_normal * unit
