"""What planners ask of a module: what a layer loses by a spec, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy as has_no_shape_yet

from splitquant.core.arrays import Matrix
from splitquant.core.rows import to_matrix
from splitquant.core.spec import QuantSpec
from splitquant.errors import TensorError
from splitquant.plan.decide import plane_bytes
from splitquant.plan.layers import Layer
from splitquant.plan.measured import Measured, measured_by
from splitquant.plan.plan import Decision, Plan
from splitquant.plan.planner import Pool
from splitquant.plan.sample import sample_of
from splitquant.storage.resources import processors
from splitquant.torch.packing import float_array
from splitquant.torch.registries import own_parameters
from splitquant.torch.split_layer import needs_bias


def stored_bytes(layer: Layer, spec: QuantSpec) -> int:
    """The bytes of a packed weight, or of the k packed weights of k parallel layers."""
    if spec.layout == "parallel" and layer.role != "embedding":
        return spec.clusters * plane_bytes(layer, replace(spec, clusters=1))
    return plane_bytes(layer, spec)


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """The sizes of a model in memory, see `plan.planner.Costs`: the bytes of its state_dict.

    Args:
        modules: by the names of their layers.
        rest: what is in the model beside the layers of a plan.
    """

    modules: Mapping[str, nn.Module]
    rest: int

    @classmethod
    def of(cls, model: nn.Module, modules: Mapping[str, nn.Module], plan: Plan) -> ModelCosts:
        """The costs of a model that a plan is about."""
        held = model.state_dict(keep_vars=True).values()
        tensors = {id(t): t for t in held if isinstance(t, Tensor) and not has_no_shape_yet(t)}
        return cls(modules, sum(t.numel() * t.dtype.itemsize for t in tensors.values()) - plan.source_bytes)

    def price(self, layer: Layer, spec: QuantSpec) -> int:
        """See `stored_bytes`."""
        return stored_bytes(layer, spec)

    def beside(self, decision: Decision) -> int:
        """What a layer has beside its planes: a bias for every further part of a parallel layer that needs one."""
        spec = decision.spec
        if spec is None or spec.layout != "parallel":
            return 0
        module = self.modules[decision.name]
        bias = own_parameters(module).get("bias")
        if bias is None or not needs_bias(module):
            return 0
        return (spec.clusters - 1) * bias.numel() * bias.dtype.itemsize

    def total(self, plan: Plan) -> int:
        """The bytes of all tensors."""
        return self.rest + sum(decision.stored_bytes + self.beside(decision) for decision in plan.decisions)


def measure_modules(modules: Mapping[str, nn.Module], asked: Sequence[tuple[Layer, Pool]]) -> list[Measured]:
    """What some layers lose by each of their candidates.

    Raises:
        TensorError: with the module's name, for NaN and infinity.
    """

    def measure(one: tuple[Layer, Pool]) -> Measured:
        layer, specs = one
        try:
            return measured_by(layer, specs, _matrices(modules[layer.name], layer))
        except TensorError as error:
            raise weight_error(layer.name, modules[layer.name], error) from error

    with ThreadPoolExecutor(processors()) as pool:
        return list(pool.map(measure, asked))


def weight_error(name: str, module: nn.Module, error: TensorError) -> TensorError:
    """What is wrong with the weight of a module, and what to do."""
    where = f"module {name!r} ({type(module).__name__})"
    return TensorError(f"the weight of {where} {error}; name it in exclude to keep it as it is")


def _matrices(module: nn.Module, layer: Layer) -> Iterator[Matrix]:
    array = float_array(own_parameters(module)["weight"])
    for sample in sample_of(layer.geometry):
        yield to_matrix(np.take(array, sample.rows, axis=layer.axis), layer.axis)
