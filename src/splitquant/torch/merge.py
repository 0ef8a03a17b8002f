"""Split and quantized layers back to one float layer each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from splitquant.plan.decide import kept
from splitquant.report.outcome import Outcome
from splitquant.torch.carriers import detach
from splitquant.torch.layers import layer_of, modules_with_weights
from splitquant.torch.packed import PackedWeight
from splitquant.torch.parts import rejoin, values
from splitquant.torch.registries import foreign_part, held_bytes, held_key, packed_weight
from splitquant.torch.replacing import Converted, M, module_outcome, own_copy, replaced, report_of
from splitquant.torch.split_layer import SplitLayer, whole


def merge(model: M, *, inplace: bool = False) -> Converted[M]:
    """Take split layers back to one layer each, bit for bit; quantized ones become floats, as their codes say.

    Residual parts, and those of a split model that was trained, overlap: there the sum is taken, rounded once, and the report
    says so.
    """
    model = own_copy(model, inplace=inplace)
    new_layers: dict[int, nn.Module] = {}
    outcomes: dict[int, Outcome] = {}
    weights: dict[tuple[int, ...], nn.Parameter] = {}
    seen: set[tuple[int, ...]] = set()
    for name, module in modules_with_weights(model):
        packed = packed_weight(module)
        if isinstance(module, SplitLayer):
            foreign = foreign_part(module)
            if foreign:
                outcomes[id(module)] = _kept(name, module, foreign, seen)
                continue
            holders = module.weights
        elif packed is not None:
            holders = [packed]
        else:
            outcomes[id(module)] = _kept(name, module, "is neither split nor quantized", seen)
            continue
        strange = _strange(holders)
        if strange:
            outcomes[id(module)] = _kept(name, module, strange, seen)
            continue
        nbytes = held_bytes(module)
        key = held_key(module)
        weight, reason = _weight_of(holders)
        weights.setdefault(key, weight)
        if isinstance(module, SplitLayer):
            new_layers[id(module)] = whole(module, weights[key])
        else:
            detach(module, "weight", weights[key])
        grid = module.activations if isinstance(module, SplitLayer) else packed and packed.activations
        if grid is not None:
            reason += f"; its input was {grid} and is float"
        new = new_layers.get(id(module), module)
        before = 0 if key in seen else nbytes
        after = 0 if key in seen else held_bytes(new)
        seen.add(key)
        outcome = module_outcome(kept(layer_of(name, new), reason), new, "merged", reason)
        outcomes[id(module)] = replace(outcome, source_bytes=before, stored_bytes=after)
    report = report_of(model, outcomes)
    return Converted(replaced(model, new_layers, inplace=inplace), report)


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


def _kept(name: str, module: nn.Module, reason: str, seen: set[tuple[int, ...]]) -> Outcome:
    """What stays, with its bytes where no module before it has the very same weight."""
    key = held_key(module)
    tied_to = "another module" if key and key in seen else None
    seen.add(key)
    return module_outcome(kept(replace(layer_of(name, module), tied_to=tied_to), reason), module, "kept", reason)
