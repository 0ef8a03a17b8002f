"""Products with packed weights as operators of PyTorch: `splitquant::linear` and `splitquant::linear_input_grad`.

torch.compile keeps them whole, and gradients flow to inputs and biases; the kernels are those of `core.products`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from splitquant.core.products import PLANES, Numbers, decode_rows, multiply, numbers_of, why_decoded
from splitquant.format.weight import Weight
from splitquant.torch.packing import KIND_OF_TORCH

logger = logging.getLogger(__name__)

_MOST_DECODED = 1 << 20  # weights that are decoded at once for gradients
_ROW_SCALE = PLANES.index("row_scale")


def numbers_for(weight: Weight) -> Numbers | None:
    """The numbers by which kernels multiply with a weight; None where there is no kernel, and it is decoded."""
    g = weight.geometry
    return None if weight.stack or why_decoded(weight.spec, weight.shape) else numbers_of(weight.spec, g.rows, g.cols)


def say_once(weight: Weight) -> None:
    """Log, once for each reason, that weights without a kernel are decoded in every product."""
    if not torch.compiler.is_compiling():
        _say(f"{weight.spec}: {why_decoded(weight.spec, weight.shape)}")


@cache
def _say(reason: str) -> None:
    logger.warning("weights are decoded to floats in every product, which is slow (%s)", reason)


def can_multiply(x: Tensor) -> bool:
    """Whether inputs are such that a kernel takes them: plain, on the CPU, and recorded by nobody who would lose it."""
    if x.dtype not in KIND_OF_TORCH or x.device.type != "cpu":
        return False
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()  # what is exported runs without us
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and torch._C._get_tracing_state() is None  # noqa: SLF001 - as torch.jit does
        and torch._C._functorch.peek_interpreter_stack() is None  # noqa: SLF001 - transforms of torch.func
        and torch.autograd.forward_ad._current_level < 0  # noqa: SLF001
    )


def linear(x: Tensor, planes: dict[str, Tensor], numbers: Numbers, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` in the dtype of x, `[..., rows]`.

    Args:
        x: `[..., cols]`, for which `can_multiply` holds.
        planes: those of the weight, by name.
        numbers: those of the weight.
        bias: `[rows]` in the dtype of x.

    LAW: that of `core.products.multiply`.
    """
    found = [planes.get(name) for name in PLANES]
    learns = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    # The dispatcher costs about as much as a small product; only those who watch or differentiate need it.
    if learns or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():  # noqa: SLF001
        out: Tensor = torch.ops.splitquant.linear(x, *found, bias, numbers)
        return out
    return _linear(x, *found, bias, numbers)


def _linear(x: Tensor, *rest: Any) -> Tensor:
    *planes, bias, numbers = rest
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    kept = [plane if plane is None else plane.contiguous() for plane in planes]
    out = torch.empty((*x.shape[:-1], numbers[0]), dtype=x.dtype)
    tokens = x.numel() // numbers[1]
    if tokens:
        of_bias = 0 if bias is None else bias.data_ptr()
        multiply(
            *(_known(numbers), _scale_kind(kept), _addresses(kept), KIND_OF_TORCH[x.dtype], tokens),
            *(x.data_ptr(), of_bias, out.data_ptr(), torch.get_num_threads()),
        )
    return out


def _linear_input_grad(grad: Tensor, *rest: Any) -> Tensor:
    *planes, numbers = rest
    rows, cols = numbers[:2]
    kept = [plane if plane is None else plane.contiguous() for plane in planes]
    flat = grad.reshape(-1, rows)
    out = torch.zeros((len(flat), cols), dtype=torch.float32)
    step = max(1, _MOST_DECODED // cols)
    for first in range(0, rows, step):
        block = torch.empty(min(step, rows - first), cols)
        decode_rows(
            *(_known(numbers), _scale_kind(kept), _addresses(kept), first, len(block)),
            *(block.data_ptr(), torch.get_num_threads()),
        )
        out += flat[:, first : first + step] @ block.to(grad.dtype)
    return out.to(grad.dtype).reshape(*grad.shape[:-1], cols)


def _known(numbers: Sequence[int]) -> Numbers:
    return numbers if isinstance(numbers, Numbers) else Numbers(*numbers)


def _scale_kind(planes: list[Tensor | None]) -> Any:
    row_scale = planes[_ROW_SCALE]
    return "fp32" if row_scale is None else KIND_OF_TORCH[row_scale.dtype]


def _addresses(planes: list[Tensor | None]) -> list[int]:
    return [0 if plane is None else plane.data_ptr() for plane in planes]


_library: Any = torch.library  # partly without types
_LIBRARY = _library.Library("splitquant", "DEF")
_SCHEMA_OF_PLANES = ", ".join(f"Tensor{'' if name == 'codes' else '?'} {name}" for name in PLANES)
_LIBRARY.define(f"linear(Tensor x, {_SCHEMA_OF_PLANES}, Tensor? bias, int[] numbers) -> Tensor")
_LIBRARY.define(f"linear_input_grad(Tensor grad, {_SCHEMA_OF_PLANES}, int[] numbers) -> Tensor")
_LIBRARY.impl("linear", _linear, "CPU")
_LIBRARY.impl("linear_input_grad", _linear_input_grad, "CPU")


def _shape_of_linear(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rest[-1][0]))


def _shape_of_input_grad(grad: Tensor, *rest: Any) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], rest[-1][1]))


_library.register_fake("splitquant::linear", _shape_of_linear, lib=_LIBRARY)
_library.register_fake("splitquant::linear_input_grad", _shape_of_input_grad, lib=_LIBRARY)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.planes, ctx.numbers = inputs[1 : 1 + len(PLANES)], inputs[-1]


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, needs_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[1 + len(PLANES)]
    of_x = torch.ops.splitquant.linear_input_grad(grad, *ctx.planes, ctx.numbers) if needs_x else None
    of_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if needs_bias else None
    return (of_x, *(None for _ in PLANES), of_bias, None)


def _linear_input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_grad = torch.ops.splitquant.linear(grad, *ctx.planes, None, ctx.numbers)
    return (of_grad, *(None for _ in PLANES), None)


_library.register_autograd("splitquant::linear", _linear_backward, setup_context=_keep, lib=_LIBRARY)
_library.register_autograd(
    "splitquant::linear_input_grad", _linear_input_grad_backward, setup_context=_keep, lib=_LIBRARY
)
