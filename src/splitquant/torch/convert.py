"""Split, quantize and merge: a model in, a model and a report out. Errors come before the first change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from splitquant.core.error import ErrorFigures
from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError, TensorError
from splitquant.plan.plan import patterns
from splitquant.torch.activations import Activations, DynamicInt8
from splitquant.torch.decide import Wish, decide, modules_with_weights
from splitquant.torch.layers import attach, detach
from splitquant.torch.outcome import Converted, ModelReport, ModuleOutcome, Outcome
from splitquant.torch.own import foreign_part, own_parameters, packed_weight, shown_weight
from splitquant.torch.packed import PackedWeight
from splitquant.torch.packing import quantize_tensor
from splitquant.torch.parts import float_parts, integer_parts, rejoin, residual_parts, values
from splitquant.torch.split_layer import SplitLayer, sister, whole

M = TypeVar("M", bound=nn.Module)
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
    inplace: bool = False,
) -> Converted[M]:
    """Make k parallel float layers of every Linear and convolution; the model computes the same function.

    spec: `clusters` is k; `strategy`, `bits`, `granularity` and `symmetric` say what the parts are best for. The layout
        is `parallel` in any case, since a part holds zeros, and nothing is polished: the quantizer finds each part's range.
    include, exclude: glob patterns of module names. include wins over exclude, and over the rule that leaves subclasses
        with a forward of their own alone.
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
    spec = replace(spec, layout="parallel", polish=False)
    wish = Wish(spec, parallel=True, include=patterns(include), exclude=patterns(exclude))
    return _convert(_own(model, inplace), wish, "split", inplace, _cut_floats)


def quantize(
    model: M,
    spec: QuantSpec | None = None,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    inplace: bool = False,
    embeddings: QuantSpec | None = None,
    activations: Activations | None = None,
) -> Converted[M]:
    """Give every Linear and convolution low-bit weights, decoded where they are used.

    spec: `QuantSpec()` by default. Layout `fused`: the layer stays, and its weight is a `PackedWeight`. Layout `parallel`:
        k integer layers of its type, whose outputs are added.
    embeddings: how Embedding layers (and heads tied to them) are quantized; None keeps them.
    activations: put the input of every quantized layer on a dynamic INT8 grid, one per token or per tensor, symmetric or
        not (`DynamicInt8`); None leaves the inputs as they are. The product is computed in float32.
    include, exclude, inplace, errors: as in `split`; an included Embedding is quantized by `spec` if `embeddings` is None.
    The weights are frozen; gradients still flow to the inputs and the biases.
    """
    spec = QuantSpec() if spec is None else spec
    _check_spec(spec)
    if embeddings is not None and embeddings.layout == "parallel":
        raise SpecError(
            f"embeddings is {embeddings}; expected the layout 'fused', since a table is looked up and not added"
        )
    grid = None if activations is None else DynamicInt8.parse(activations)
    wish = Wish(spec, spec.layout == "parallel", embeddings, patterns(include), patterns(exclude), grid)
    return _convert(_own(model, inplace), wish, "quantized", inplace, _cut_packed)


def merge(model: M, inplace: bool = False) -> Converted[M]:
    """Take split layers back to one layer each, bit for bit; quantized ones become floats, as their codes say.

    Residual parts, and those of a split model that was trained, overlap: there the sum is taken, rounded once, and the report
    says so.
    """
    model = _own(model, inplace)
    new_layers: dict[int, nn.Module] = {}
    outcomes: dict[int, ModuleOutcome] = {}
    weights: dict[tuple[int, ...], nn.Parameter] = {}
    for name, module in modules_with_weights(model):
        packed = packed_weight(module)
        if isinstance(module, SplitLayer):
            foreign = foreign_part(module)
            if foreign:
                outcomes[id(module)] = _outcome(name, module, "kept", foreign)
                continue
            holders = module.weights
        elif packed is not None:
            holders = [packed]
        else:
            outcomes[id(module)] = _outcome(name, module, "kept", "is neither split nor quantized")
            continue
        strange = _strange(holders)
        if strange:
            outcomes[id(module)] = _outcome(name, module, "kept", strange)
            continue
        key = tuple(id(holder) for holder in holders)
        weight, reason = _weight_of(holders)
        weights.setdefault(key, weight)
        if isinstance(module, SplitLayer):
            new_layers[id(module)] = whole(module, weights[key])
        else:
            detach(module, "weight", weights[key])
        grid = module.activations if isinstance(module, SplitLayer) else packed and packed.activations
        if grid is not None:
            reason += f"; its input was {grid} and is float"
        outcomes[id(module)] = _outcome(name, new_layers.get(id(module), module), "merged", reason)
    report = _report(model, outcomes)
    return Converted(_replace(model, new_layers, inplace), report)


def _check_spec(spec: object) -> None:
    if not isinstance(spec, QuantSpec):
        raise SpecError(
            f"spec is {spec!r}; expected a QuantSpec, for instance splitquant.QuantSpec(bits=4, clusters=3)"
        )


def _convert(
    model: M,
    wish: Wish,
    done: Outcome,
    inplace: bool,
    cut: Cut,
) -> Converted[M]:
    if inplace:
        _refuse_compiled(model)
    decisions = decide(model, wish)
    if inplace and wish.parallel and any(d.module is model and d.spec is not None for d in decisions):
        raise SpecError(
            f"the model is itself a {type(model).__name__} and cannot be replaced in place; use the model that is returned"
        )
    outcomes: dict[int, ModuleOutcome] = {}
    made: dict[int, Weights] = {}
    first: dict[int, str] = {}
    for decision in decisions:
        module, spec = decision.module, decision.spec
        if spec is None:
            outcomes[id(module)] = _outcome(decision.name, module, "kept", decision.reason)
            continue
        weight = own_parameters(module)["weight"]
        reason, figures = decision.reason, None
        if id(weight) not in made:
            try:
                made[id(weight)], figures = cut(weight, spec, decision.axis)
            except TensorError as error:
                where = f"module {decision.name!r} ({type(module).__name__})"
                raise TensorError(f"the weight of {where} {error}; name it in exclude to keep it as it is") from error
            first[id(weight)] = decision.name
        else:
            reason = f"its weight is that of {first[id(weight)]!r}, and is shared as before"
        inputs = "" if decision.activations is None else str(decision.activations)
        outcome = _outcome(decision.name, module, done, reason)
        outcomes[id(module)] = replace(outcome, spec=spec, figures=figures, activations=inputs)
    report = _report(model, outcomes)
    new_layers: dict[int, nn.Module] = {}
    for decision in decisions:
        if decision.spec is None:
            continue
        module = decision.module
        parts = made[id(own_parameters(module)["weight"])]
        if decision.spec.layout == "parallel":
            layers = [sister(module, part, c) for c, part in enumerate(parts)]
            new_layers[id(module)] = SplitLayer(module, layers, decision.activations)
        elif isinstance(parts[0], PackedWeight):
            parts[0].activations = decision.activations or parts[0].activations
            attach(module, "weight", parts[0])
    return Converted(_replace(model, new_layers, inplace), report)


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, OptimizedModule):
            raise SpecError(
                f"module {name!r} was compiled by torch.compile and would go on with its old layers; convert the model first, "
                "then compile it, or take a copy (inplace=False)"
            )


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


def _weight_of(holders: Sequence[nn.Parameter | PackedWeight]) -> tuple[nn.Parameter, str]:
    weight, overlap = rejoin(values(holders))
    quantized = isinstance(holders[0], PackedWeight)
    reason = "quantized: the float values of its codes" if quantized else ""
    if overlap:
        reason = f"{overlap} of {weight.numel()} weights are in more than one part: they were added"
    return nn.Parameter(weight, requires_grad=holders[0].requires_grad), reason


def _strange(holders: Sequence[nn.Parameter | PackedWeight]) -> str:
    """Why parts cannot be put together ("" if they can): somebody else may have changed them since."""
    for holder in holders:
        if not isinstance(holder, PackedWeight) and (
            type(holder) is not nn.Parameter or type(holder.data) is not Tensor
        ):
            return f"a part's weight is a {type(holder).__name__}: quantized or distributed by another library"
        if holder.device.type == "meta":
            return "is on the meta device and has no values; load its weights first"
    return ""


def _own(model: M, inplace: bool) -> M:
    if inplace:
        return model
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, ValueError) as error:
        raise SpecError(f"the model cannot be copied ({error}); convert it with inplace=True") from error


def _replace(model: M, new_layers: Mapping[int, nn.Module], inplace: bool) -> M:
    """Put new layers in the place of old ones, under every name that they have."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # noqa: SLF001 - assignment would refuse names that a class shadows
            if id(child) in new_layers:
                parent._modules[name] = new_layers[id(child)]  # noqa: SLF001
    found = new_layers.get(id(model), model)
    if inplace and found is not model:
        raise SpecError(
            f"the model is itself a {type(model).__name__} and cannot be replaced in place; use inplace=False"
        )
    return found  # type: ignore[return-value]


def _outcome(name: str, module: nn.Module, outcome: Outcome, reason: str) -> ModuleOutcome:
    weight = shown_weight(module)
    shape = () if weight is None else tuple(weight.shape)
    dtype = "" if weight is None else str(weight.dtype).removeprefix("torch.")
    return ModuleOutcome(name, type(module).__name__, outcome, reason, shape, dtype)


def _report(model: nn.Module, outcomes: Mapping[int, ModuleOutcome]) -> ModelReport:
    """Outcomes in the order of the modules; a module with several names comes under each, its figures once."""
    rows: list[ModuleOutcome] = []
    seen: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        row = outcomes.get(id(module))
        if row is None:
            continue
        if id(module) in seen:
            row = replace(row, name=name, reason=f"the same module as {row.name!r}", figures=None)
        seen.add(id(module))
        rows.append(row)
    return ModelReport(tuple(rows))
