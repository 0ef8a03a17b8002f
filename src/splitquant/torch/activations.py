"""INT8 activations: the input of a quantized layer on a grid that is found anew for every input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from splitquant.errors import SpecError

Activations = Literal["int8-token", "int8-tensor", "int8-token-sym", "int8-tensor-sym"]
ACTIVATIONS: tuple[Activations, ...] = get_args(Activations)


@dataclass(frozen=True)
class DynamicInt8:
    """An INT8 grid of the input's own range: `q = clip(round(x / scale) + zero_point)`, and `x ≈ scale * (q - zero_point)`.

    | name          | one grid for                           | codes     | as in                                      |
    |---------------|----------------------------------------|-----------|--------------------------------------------|
    | `int8-tensor` | the whole input                        | 0..255    | ONNX DynamicQuantizeLinear                 |
    | `int8-token`  | a row of the last axis; convolutions:  | 0..255    | torchao's Int8DynamicActivationIntxWeight  |
    |               | the input of one image or signal       |           |                                            |
    | `...-sym`     | the same                               | -127..127 | torchao's Int8DynamicActivationInt8Weight  |

    The asymmetric range is widened to hold 0, and rounding is to nearest even. An input of zeros has scale 1.
    """

    per_token: bool = True
    symmetric: bool = False

    @classmethod
    def parse(cls, text: object) -> DynamicInt8:
        """Read one of `ACTIVATIONS`; SpecError for anything else."""
        if not isinstance(text, str) or text not in ACTIVATIONS:
            raise SpecError(f"activations is {text!r}; expected None or one of {', '.join(ACTIVATIONS)}")
        return cls("token" in text, text.endswith("-sym"))

    def codes(self, x: torch.Tensor, weight_ndim: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes (float32 integers of x's shape), scale and zero_point (float32, to be broadcast against the codes).

        weight_ndim: axes of the weight that x is for; a token is what lies in the last `weight_ndim - 1` axes of x.
        """
        wide = x.to(torch.float32)
        low, high = self._range(wide, tuple(range(1 - weight_ndim, 0)))
        if self.symmetric:
            scale = _nonzero(torch.maximum(-low, high) / 127)
            return torch.clamp(torch.round(wide / scale), -127, 127), scale, torch.zeros_like(scale)
        scale = _nonzero((high - low) / 255)
        zero_point = torch.clamp(torch.round(-low / scale), 0, 255)
        return torch.clamp(torch.round(wide / scale) + zero_point, 0, 255), scale, zero_point

    def __call__(self, x: torch.Tensor, weight_ndim: int = 2) -> torch.Tensor:
        """What the codes stand for, float32. Gradients pass to x as if there were no grid (straight through).

        LAW: every value is `scale * (q - zero_point)` rounded once, so a float32 product with it is the integer product of
        the codes up to float32 rounding. In 16 bits it would not be: there the grid itself is rounded.
        """
        traced = torch._C._get_tracing_state() is not None  # noqa: SLF001 - as torch.jit does
        recorded = traced or torch.compiler.is_exporting() or not isinstance(x, torch.Tensor)
        if not recorded and x.numel() == 0:
            return x.to(torch.float32)
        learns = not recorded and x.requires_grad
        codes, scale, zero_point = self.codes(x.detach() if learns else x, weight_ndim)
        values = (codes - zero_point) * scale
        return values + (x - x.detach()) if learns else values  # plus zero, with the gradient of x

    def _range(self, x: torch.Tensor, axes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.per_token:
            low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
        else:
            low, high = x.min(), x.max()
        return low.clamp(max=0), high.clamp(min=0)

    def __str__(self) -> str:
        return f"int8-{'token' if self.per_token else 'tensor'}{'-sym' if self.symmetric else ''}"


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    """1 in the place of 0; NaN and infinity stay, so that they are seen in the output."""
    return scale + (scale == 0).to(scale.dtype)
