"""Quantizing a float model while it is loaded: which parameters, by the same plan as a folder, and the step itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.quantizers_utils import should_convert_module

from splitquant.checkpoint.roles import layers_of
from splitquant.errors import TensorError
from splitquant.hf.config import SplitQuantConfig
from splitquant.hf.placing import Places
from splitquant.hf.sources import Header
from splitquant.plan.decide import decide
from splitquant.plan.plan import Decision
from splitquant.torch.packed import PackedWeight

logger = logging.getLogger(__name__)


def choose(
    headers: list[Header], ways: Mapping[str, tuple[str, str]], config: SplitQuantConfig, places: Places
) -> dict[str, Decision]:
    """What to quantize, by the model's parameter name.

    The plan is that of the folder quantizer. What it would quantize and a transformers layer cannot carry packed (experts
    that are one 3-D parameter, mostly) stays float, and a warning names it.
    """
    plan = decide(layers_of(headers, places.model.config.to_dict()), config.recipe)
    chosen, kept = {}, []
    for tensor in plan.quantized:
        target, pattern = ways[tensor.name]
        skip = config.modules_to_not_convert
        if skip and not all(
            should_convert_module(name.removesuffix(".weight"), skip) for name in (target, tensor.name)
        ):
            continue
        try:
            fits = not pattern and not tensor.layer.stack and places.can_take(target, tensor.layer.shape)
        except AttributeError:
            continue  # the model has no such parameter, and transformers reports it
        if fits:
            chosen[target] = tensor
        else:
            kept.append(tensor.name)
    if kept:
        logger.warning(
            "%d of %d tensors stay float, since the layers of transformers that use them cannot carry packed weights: %s. "
            "To have them quantized on disk: splitquant quantize",
            len(kept),
            len(plan.quantized),
            ", ".join(kept),
        )
    return chosen


class QuantizeOnLoad(ConversionOps):  # type: ignore[misc] # transformers is not typed
    """Quantizes a parameter as it arrives and puts it into its layer; errors are kept in `failures` by tensor name."""

    def __init__(self, chosen: dict[str, Decision], places: Places, failures: dict[str, TensorError]) -> None:
        self.chosen = chosen
        self.places = places
        self.failures = failures

    def __deepcopy__(self, memo: Any) -> QuantizeOnLoad:
        return self

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Take the parameters that are to be packed out of `input_dict`; returns the others."""
        del source_patterns, target_patterns, kwargs
        left = {}
        for name, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            plan = self.chosen.get(name)
            if plan is None or plan.spec is None or tuple(tensor.shape) != plan.layer.shape:
                self.chosen.pop(name, None)
                left[name] = tensor
                continue
            try:
                packed = PackedWeight.from_tensor(tensor, plan.spec, plan.layer.axis, self.places.dtype_of(name))
            except TensorError as error:
                # Raised when loading is over: transformers would turn it into a report without its text.
                self.failures[name] = error
                left[name] = tensor
                continue
            self.places.put(name, packed, set() if missing_keys is None else missing_keys)
        return left
