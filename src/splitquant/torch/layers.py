"""The modules of a model as layers: which may be converted, why others stay, and whose weights are shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.utils import parametrize

from splitquant.plan.layers import Layer, Role
from splitquant.torch.kinds import has_forward_of_its_own, linear_kind, linear_kinds, members_of_its_own
from splitquant.torch.packing import dtype_name
from splitquant.torch.registries import (
    held_bytes,
    held_key,
    holds_weights,
    is_lazy,
    is_packed_by_pytorch,
    own_buffers,
    own_parameters,
    packed_weight,
    shown_weight,
)
from splitquant.torch.split_layer import SplitLayer

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Not hooks before loading: they serve names that a split layer has no more, and weight_norm leaves one behind.
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_post_hooks")
TABLE = "an embedding is a table of rows that are looked up, not a product"


@dataclass(frozen=True, slots=True)
class ModuleLayer:
    """A module with weights, as a layer.

    Args:
        module: the module.
        layer: what a plan decides about.
        float_input: why its input cannot be put on a grid ("": it can); if_included: whether it can where somebody asks for
            the module by name.
    """

    module: nn.Module
    layer: Layer
    float_input: str = ""
    if_included: bool = False


def module_layers(model: nn.Module, *, in_parts: Callable[[str], bool], tables: bool) -> tuple[ModuleLayer, ...]:
    """Every module with weights, each once.

    Args:
        model: the model.
        in_parts: by its name whether k layers are to be made of one, which asks more of it than a packed weight does.
        tables: whether embeddings can be converted.
    """
    aliases: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        aliases.setdefault(id(module), []).append(name)
    owners = dict(_read_as_they_are(model))
    readers = dict(_read_where_that_is_faster(model))
    modules = list(modules_with_weights(model))
    first: dict[tuple[int, ...], str] = {}
    kept_modules = [(name, module) for name, module in modules if _impossible(module)]
    in_kept = {id(p): name for name, m in kept_modules for a, p in own_parameters(m).items() if a != "weight"}
    found = []
    for name, module in modules:
        layer = layer_of(name, module, tuple(aliases[id(module)][1:]))
        kept = _impossible(module)
        if not kept and layer.role == "embedding" and not tables:
            kept = TABLE
        taste = ""
        if not kept and in_parts(name) and layer.role != "embedding":
            kept = _impossible_in_parts(module, owners)
            taste = _not_in_parts(module)
        key = held_key(module)
        if key:
            owner = first.setdefault(key, name)
            layer = replace(layer, tied_to=None if owner == name else owner)
            if not kept and key[0] in in_kept:
                kept = f"its weight is that of {in_kept[key[0]]!r}, which is kept"
        layer = replace(layer, kept_because=kept or taste, possible=not kept)
        found.append(_with_input(ModuleLayer(module, layer), owners, readers if in_parts(name) else {}))
    return tuple(found)


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


def layer_of(name: str, module: nn.Module, aliases: tuple[str, ...] = ()) -> Layer:
    """A module as a layer, by itself: nothing is known of what surrounds it."""
    kind, weight = linear_kind(module), shown_weight(module)
    role: Role = "other"
    if isinstance(module, nn.Embedding):
        role = "embedding"
    elif kind is not None:
        role = "conv" if "Conv" in kind.__name__ and kind.__name__ != "Conv1D" else "linear"
    if weight is None:
        return Layer(name, role, "", (), 0, aliases=aliases)
    axis = 0 if kind is None else linear_kinds()[kind]
    return Layer(name, role, dtype_name(weight.dtype), tuple(weight.shape), held_bytes(module), axis, aliases=aliases)


def _with_input(found: ModuleLayer, owners: dict[int, str], readers: dict[int, str]) -> ModuleLayer:
    """The layer with what is known of its input."""
    module = found.module
    kind = linear_kind(module)
    if id(module) in owners:
        return replace(found, float_input=f"{owners[id(module)]} reads its weight and does not call it")
    if id(module) in readers:
        return replace(found, float_input=f"{readers[id(module)]} may read its weight and not call it")
    if kind is not None and has_forward_of_its_own(module, kind):
        return replace(found, float_input="it has a forward of its own", if_included=True)
    return found


def _impossible_in_parts(module: nn.Module, owners: dict[int, str]) -> str:  # noqa: PLR0911 - a flat list of checks, each with its reason, reads best in one piece
    """Why k layers cannot be made of one ("" if they can)."""
    if id(module) in owners:
        return f"{owners[id(module)]} reads its weight and does not call it; quantize it in the fused layout"
    if "bias" in own_buffers(module) or "bias" in module.__dict__:
        return "its bias is no parameter, and cannot be handed to one part"
    weight = own_parameters(module)["weight"]
    if any(getattr(weight, hooks, None) for hooks in _TENSOR_HOOKS):
        return "has hooks on its weight itself, which its parts would not have; remove them first"
    held = (*own_parameters(module), *own_buffers(module), *(name for name, _ in module.named_children()))
    others = [found for found in held if found not in ("weight", "bias")]
    if others:
        return f"holds more than weight and bias: {', '.join(others)}"
    if "forward" in module.__dict__:
        return "its forward was replaced on this very module (by hooks of accelerate, for instance); remove that first"
    if any(module.__dict__.get(hooks) for hooks in _STATE_HOOKS):
        return "has state_dict hooks, which expect its own weight; remove them first"
    return ""


def _not_in_parts(module: nn.Module) -> str:
    """Why a layer that is not asked for by name is not taken apart ("" if it is)."""
    kind = linear_kind(module)
    assert kind is not None
    if has_forward_of_its_own(module, kind):
        return (
            f"{type(module).__name__} has a forward of its own, which need not be linear in the weight; "
            "name it in include if it is"
        )
    more = members_of_its_own(module, kind)
    if more:
        return (
            f"{type(module).__name__} has members that {kind.__name__} has not: {', '.join(more)}; name it in include"
        )
    return ""


def _impossible(module: nn.Module) -> str:  # noqa: C901, PLR0911, PLR0912 - a flat list of checks, each with its reason, reads best in one piece
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
