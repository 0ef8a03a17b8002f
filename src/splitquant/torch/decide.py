"""What is to become of every module of a model, and why: decided before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize

from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.torch.activations import DynamicInt8
from splitquant.torch.kinds import has_forward_of_its_own, linear_kind, linear_kinds, members_of_its_own
from splitquant.torch.own import (
    holds_weights,
    is_lazy,
    is_packed_by_pytorch,
    own_buffers,
    own_parameters,
    packed_weight,
)
from splitquant.torch.split_layer import SplitLayer

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Not hooks before loading: they serve names that a split layer has no more, and weight_norm leaves one behind.
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_post_hooks")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for.

    spec: for linear and convolution layers; embeddings: for Embedding layers (None keeps them). parallel: k layers are
    made of one, which asks more of a layer than a packed weight in its place does.
    include, exclude: glob patterns of module names; include wins over exclude, and both over the rules of taste.
    activations: the grid of the inputs of linear and convolution layers (None: no grid).
    """

    spec: QuantSpec
    parallel: bool
    embeddings: QuantSpec | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    activations: DynamicInt8 | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One module and what becomes of it: converted by `spec`, or kept (`spec` None) because of `reason`.

    activations: the grid of its input (None: no grid).
    """

    name: str
    module: nn.Module
    spec: QuantSpec | None
    axis: int
    reason: str
    activations: DynamicInt8 | None = None


def decide(model: nn.Module, wish: Wish) -> tuple[Decision, ...]:
    """Decide about every module with weights, each once; SpecError for a pattern that matches none of them."""
    found = list(modules_with_weights(model))
    aliases: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        aliases.setdefault(id(module), []).append(name)
    names = [name for _, module in found for name in aliases[id(module)]]
    for pattern in (*wish.include, *wish.exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SpecError(
                f"the pattern {pattern!r} matches none of the {len(names)} modules with weights; "
                "print the report of a run without it to see their names"
            )
    owners = dict(_read_as_they_are(model))
    decisions = [_decide(name, module, aliases[id(module)], owners, wish) for name, module in found]
    if wish.parallel:
        readers = dict(_read_where_that_is_faster(model))
        decisions = [
            _with_float_input(d, f"{readers[id(d.module)]} may read its weight and not call it")
            if id(d.module) in readers
            else d
            for d in decisions
        ]
    return tuple(_keep_what_is_tied_to_kept(decisions))


def modules_with_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module with weights by its first name; what lies inside of a split layer or a packed weight is its own."""
    inner: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inner:
            continue
        if isinstance(module, SplitLayer) or is_packed_by_pytorch(module):
            inner.update(id(child) for child in module.modules())
        elif parametrize.is_parametrized(module):
            inner.update(id(child) for child in module.parametrizations.modules())
        if holds_weights(module):
            yield name, module


def _decide(name: str, module: nn.Module, names: Sequence[str], owners: dict[int, str], wish: Wish) -> Decision:
    def keep(reason: str) -> Decision:
        return Decision(name, module, None, 0, reason)

    def asked(patterns: tuple[str, ...]) -> str | None:
        return next((p for p in patterns if any(fnmatchcase(alias, p) for alias in names)), None)

    included = asked(wish.include)
    barred = None if included else asked(wish.exclude)
    if barred:
        return keep(f"excluded by {barred!r}")
    impossible = _impossible(module)
    if impossible:
        return keep(impossible)
    kind = linear_kind(module)
    if kind is None:
        spec = wish.embeddings or (wish.spec if included and not wish.parallel else None)
        if spec is None:
            return keep("an embedding is a table of rows that are looked up, not a product")
        return Decision(name, module, spec, 0, f"included by {included!r}" if included else "")
    if wish.parallel:
        if id(module) in owners:
            return keep(f"{owners[id(module)]} reads its weight and does not call it; quantize it in the fused layout")
        if has_forward_of_its_own(module, kind) and not included:
            return keep(
                f"{type(module).__name__} has a forward of its own, which need not be linear in the weight; "
                "name it in include if it is"
            )
        more = members_of_its_own(module, kind)
        if more and not included:
            return keep(
                f"{type(module).__name__} has members that {kind.__name__} has not: {', '.join(more)}; name it in include"
            )
        held = (*own_parameters(module), *own_buffers(module), *(name for name, _ in module.named_children()))
        if "bias" in own_buffers(module) or "bias" in module.__dict__:
            return keep("its bias is no parameter, and cannot be handed to one part")
        weight = own_parameters(module)["weight"]
        if any(getattr(weight, hooks, None) for hooks in _TENSOR_HOOKS):
            return keep("has hooks on its weight itself, which its parts would not have; remove them first")
        others = [found for found in held if found not in ("weight", "bias")]
        if others:
            return keep(f"holds more than weight and bias: {', '.join(others)}")
        if "forward" in module.__dict__:
            return keep(
                "its forward was replaced on this very module (by hooks of accelerate, for instance); remove that first"
            )
        if any(module.__dict__.get(hooks) for hooks in _STATE_HOOKS):
            return keep("has state_dict hooks, which expect its own weight; remove them first")
    reason = f"included by {included!r}" if included else ""
    decision = Decision(name, module, wish.spec, linear_kinds()[kind], reason, wish.activations)
    if id(module) in owners:
        return _with_float_input(decision, f"{owners[id(module)]} reads its weight and does not call it")
    if has_forward_of_its_own(module, kind) and not included:
        return _with_float_input(decision, "it has a forward of its own")
    return decision


def _with_float_input(decision: Decision, why: str) -> Decision:
    if decision.activations is None:
        return decision
    return replace(decision, activations=None, reason=f"its input stays float: {why}")


def _impossible(module: nn.Module) -> str:
    """Why the weight of a module cannot be taken at all ("" if it can)."""
    if isinstance(module, SplitLayer):
        return "is split already; merge it first"
    if packed_weight(module) is not None:
        return "is quantized already; merge it first"
    if parametrize.is_parametrized(module):
        lists = dict(module.parametrizations.items())  # type: ignore[union-attr,operator]
        how = "; ".join(f"{name} by {', '.join(type(p).__name__ for p in found)}" for name, found in lists.items())
        return f"is parametrized ({how}); call torch.nn.utils.parametrize.remove_parametrizations first"
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled by TorchScript; convert the model that it was made from"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "a recurrent layer: a fused kernel reads its weights, which are not those of layers"
    if isinstance(module, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads in_proj_weight as it is, and calls no layer with it"
    if is_lazy(module):
        return "is lazily initialised; run one batch through the model first"
    if linear_kind(module) is None and not isinstance(module, nn.Embedding):
        return _not_a_layer(module)
    weight = own_parameters(module).get("weight")
    if weight is None:
        found = ", ".join(name for name in own_parameters(module) if name.startswith("weight_"))
        if found:
            return (
                f"its weight is computed from {found} (weight_norm, spectral_norm or pruning); make it permanent first"
            )
        return "holds no weight parameter of its own; another library quantized or replaced it"
    if type(weight) not in (nn.Parameter, torch.Tensor) or type(weight.data) is not torch.Tensor:
        return f"its weight is a {type(weight).__name__}: quantized or distributed by another library"
    if weight.is_meta:
        return "is on the meta device and has no values; load its weights first"
    if weight.dtype not in _FLOATS:
        return f"its weight is {weight.dtype}; expected float16, bfloat16, float32 or float64"
    return "its weight is empty" if weight.numel() == 0 else ""


def _not_a_layer(module: nn.Module) -> str:
    parameters = own_parameters(module)
    stacked = [f"{n} {list(p.shape)}" for n, p in parameters.items() if p.ndim == 3]
    if stacked and "expert" in type(module).__name__.lower():
        return (
            f"experts held as raw parameters ({', '.join(stacked)}); `splitquant quantize FOLDER` takes them one by one"
        )
    raw = [f"{n} {list(p.shape)}" for n, p in parameters.items() if p.ndim >= 2]
    if raw:
        return f"{type(module).__name__} is no linear or convolution layer; it holds {', '.join(raw)}"
    if parameters:
        return "no matrix: a normalization, a scale or a bias"
    return f"{type(module).__name__} holds its weights as buffers or packed: another library quantized it"


def _read_as_they_are(model: nn.Module) -> Iterator[tuple[int, str]]:
    """Layers that are never called: the module around them reads their weights, so branches would never run."""
    for module in model.modules():
        kind = type(module).__name__
        if isinstance(module, nn.MultiheadAttention):
            yield id(module.out_proj), "nn.MultiheadAttention"
        elif "Mamba" in kind and "Mixer" in kind:
            for name in ("conv1d", "dt_proj"):
                if isinstance(getattr(module, name, None), nn.Module):
                    yield id(getattr(module, name)), kind


def _read_where_that_is_faster(model: nn.Module) -> Iterator[tuple[int, str]]:
    """Layers whose weights PyTorch reads for a fused inference kernel, where they are plain tensors (a sum of parts is)."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            yield id(module.linear1), "nn.TransformerEncoderLayer"
            yield id(module.linear2), "nn.TransformerEncoderLayer"


def _keep_what_is_tied_to_kept(decisions: list[Decision]) -> Iterator[Decision]:
    """A weight that several modules share is converted in all of them, alike, or in none."""
    users: dict[int, list[Decision]] = {}
    for decision in decisions:
        for parameter in own_parameters(decision.module).values():
            users.setdefault(id(parameter), []).append(decision)
    for decision in decisions:
        if decision.spec is None:
            yield decision
            continue
        tied = users[id(own_parameters(decision.module)["weight"])]
        table = next((u for u in tied if u.spec is not None and isinstance(u.module, nn.Embedding)), decision)
        other = next((u for u in tied if u.spec is None or u.axis != decision.axis), None)
        if other is None:
            found = replace(decision, spec=table.spec)
            floats = next((u for u in tied if u.activations is None and not isinstance(u.module, nn.Embedding)), None)
            yield (
                found
                if floats is None
                else _with_float_input(found, f"that of {floats.name!r} does, whose weight it shares")
            )
        else:
            how = "kept" if other.spec is None else "laid out otherwise"
            yield replace(decision, spec=None, reason=f"its weight is that of {other.name!r}, which is {how}")
