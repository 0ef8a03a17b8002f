"""Split and quantize: a model in, a model and a report out. Errors come before the first change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Unpack

from torch import nn

from splitquant.core.error import ErrorFigures
from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError, TensorError
from splitquant.plan.options import PlanningOptions, PlanOptions
from splitquant.plan.recipe import Recipe, patterns
from splitquant.report.outcome import Fate, Outcome
from splitquant.torch.activations import Activations, DynamicInt8
from splitquant.torch.carriers import attach
from splitquant.torch.measure import weight_error
from splitquant.torch.packed import PackedWeight
from splitquant.torch.packing import quantize_tensor
from splitquant.torch.parts import float_parts, integer_parts, residual_parts
from splitquant.torch.plan import Planned, conversions_of, plan_quantize, plan_split
from splitquant.torch.registries import own_parameters
from splitquant.torch.replacing import Converted, M, module_outcome, own_copy, replaced, report_of
from splitquant.torch.split_layer import SplitLayer, sister

Weights = Sequence[nn.Parameter | PackedWeight]
Cut = Callable[[nn.Parameter, QuantSpec, int], tuple[Weights, ErrorFigures | None]]
"""Weight, spec and channel axis to the parts, and what they lose."""

SPLIT = QuantSpec(bits=4, clusters=3, strategy="min_error", granularity="tensor", layout="parallel", polish=False)
"""How `split` cuts by default: three parts whose borders are the best for a per-tensor INT4 quantizer downstream."""


def split(
    model: M,
    spec: QuantSpec = SPLIT,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    *,
    inplace: bool = False,
) -> Converted[M]:
    """Make k parallel float layers of every Linear and convolution; the model computes the same function.

    Args:
        model: any module.
        spec: `clusters` is k; `strategy`, `bits`, `granularity` and `symmetric` say what the parts are best for. The layout
            is `parallel` in any case, since a part holds zeros, and nothing is polished: the quantizer finds each part's range.
        include: names or glob patterns of modules; wins over exclude, and over the rule that leaves subclasses with a forward
            of their own alone.
        exclude: names or glob patterns of modules that stay as they are.
        inplace: change this model, else a copy. A model that is itself one layer cannot be changed in place.

    LAW: the parts' weights are disjoint and sum to the original bit for bit; `merge` takes them back. With the strategy
    `residual` all parts but the last are on the grids that a min-max quantizer finds, and the last is the rest
    (`residual_parts` has the laws).
    Raises SpecError for `lloyd`, a pattern that matches nothing or a model that cannot be copied, TensorError, with the
    module's name, for weights that hold NaN or infinity; the model is then as it was.
    """
    _check_spec(spec)
    if spec.facts.free_levels:
        raise SpecError(f"spec is {spec}; expected another strategy, since a linear quantizer finds no free levels")
    recipe = Recipe(replace(spec, layout="parallel", polish=False), None, patterns(include), patterns(exclude))
    return _convert(
        own_copy(model, inplace=inplace), partial(plan_split, recipe=recipe), "split", _cut_floats, inplace=inplace
    )


def quantize(  # noqa: PLR0913 - the options of a public function
    model: M,
    spec: QuantSpec | None = None,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    *,
    inplace: bool = False,
    embeddings: QuantSpec | int | str | None = None,
    activations: Activations | None = None,
    **options: Unpack[PlanningOptions],
) -> Converted[M]:
    """Give every Linear and convolution low-bit weights, decoded where they are used.

    Args:
        model: any module.
        spec: `QuantSpec()` by default, or by `options`. Layout `fused`: the layer stays, and its weight is a `PackedWeight`.
            Layout `parallel`: k integer layers of its type, whose outputs are added.
        include: names or glob patterns of modules, as in `split`.
        exclude: names or glob patterns of modules, as in `split`.
        inplace: as in `split`.
        embeddings: how Embedding layers (and heads tied to them) are quantized: a spec, a number of bits, or "auto" (8 bits,
            or by `target_bits` and `target_size` whatever is best); None keeps them.
        activations: put the input of every quantized layer on a dynamic INT8 grid, one per token or per tensor, symmetric or
            not (`DynamicInt8`); None leaves the inputs as they are. The product is computed in float32.
        **options: `fixed`, `target`, `target_bits`, `target_size` (bytes of the state_dict), `weighting`, `plan_file`, as in
            `splitquant.quantize`.

    The weights are frozen; gradients still flow to the inputs and the biases. Errors are those of `split`.
    """
    if spec is not None:
        _check_spec(spec)
    grid = None if activations is None else DynamicInt8.parse(activations)
    if embeddings is None and options.get("plan_file") is not None:
        embeddings = "auto"  # None is what is usual here, and nothing that was said beside the plan
    asked = PlanOptions(spec=spec, embeddings=embeddings, include=include, exclude=exclude, **options)
    return _convert(
        own_copy(model, inplace=inplace),
        partial(plan_quantize, options=asked),
        "quantized",
        _cut_packed,
        grid,
        inplace=inplace,
    )


def _check_spec(spec: object) -> None:
    if not isinstance(spec, QuantSpec):
        raise SpecError(
            f"spec is {spec!r}; expected a QuantSpec, for instance splitquant.QuantSpec(bits=4, clusters=3)"
        )


def _convert(  # noqa: PLR0913 - what `split` and `quantize` differ in
    model: M,
    plan_of: Callable[[nn.Module], Planned],
    done: Fate,
    cut: Cut,
    grid: DynamicInt8 | None = None,
    *,
    inplace: bool,
) -> Converted[M]:
    conversions = conversions_of(plan_of(model), grid)
    changed = [c for c in conversions if c.decision.spec is not None]
    if inplace and any(c.module is model and c.in_parts for c in changed):
        raise SpecError(
            f"the model is itself a {type(model).__name__} and cannot be replaced in place; use the model that is returned"
        )
    outcomes: dict[int, Outcome] = {
        id(c.module): module_outcome(c.decision, c.module, "kept", c.decision.reason) for c in conversions
    }
    made: dict[str, Weights] = {}
    for c in changed:
        layer, spec = c.decision.layer, c.decision.spec
        assert spec is not None
        reason, figures = "; ".join(filter(None, (c.decision.reason, c.reason))), None
        if layer.tied_to is not None:
            reason = f"its weight is that of {layer.tied_to!r}, and is shared as before"
        else:
            try:
                made[layer.name], figures = cut(own_parameters(c.module)["weight"], spec, layer.axis)
            except TensorError as error:
                raise weight_error(layer.name, c.module, error) from error
        outcome = module_outcome(c.decision, c.module, done, reason)
        inputs = "" if c.activations is None else str(c.activations)
        times = spec.clusters if done == "split" else 1
        outcomes[id(c.module)] = replace(
            outcome, spec=spec, figures=figures, activations=inputs, stored_bytes=times * outcome.stored_bytes
        )
    report = report_of(model, outcomes)
    new_layers: dict[int, nn.Module] = {}
    for c in changed:
        parts = made[c.decision.layer.owner]
        if c.in_parts:
            new_layers[id(c.module)] = SplitLayer(
                c.module, [sister(c.module, p, n) for n, p in enumerate(parts)], c.activations
            )
        elif isinstance(parts[0], PackedWeight):
            parts[0].activations = c.activations or parts[0].activations
            attach(c.module, "weight", parts[0])
    return Converted(replaced(model, new_layers, inplace=inplace), report)


def _cut_floats(weight: nn.Parameter, spec: QuantSpec, axis: int) -> tuple[Weights, ErrorFigures | None]:
    if spec.facts.additive:
        return residual_parts(weight, spec, axis)
    found = quantize_tensor(weight.detach(), spec, axis)
    return float_parts(weight, found), found.figures


def _cut_packed(weight: nn.Parameter, spec: QuantSpec, axis: int) -> tuple[Weights, ErrorFigures | None]:
    found = quantize_tensor(weight.detach(), spec, axis)
    if spec.layout == "parallel":
        return integer_parts(found, weight), found.figures
    packed = PackedWeight.from_split(found, weight.dtype, weight.dtype)
    packed.to(weight.device)
    return [packed], found.figures
