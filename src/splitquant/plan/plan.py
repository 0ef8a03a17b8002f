"""The plan of a folder: for every tensor what becomes of it, and why. A plain value: print it, compare it, store it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Protocol

from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.errors import SpecError, TensorError
from splitquant.format.dtypes import DTYPES
from splitquant.format.weight import Weight
from splitquant.plan.roles import Role, role_of


class TensorHeader(Protocol):
    """What a plan needs to know of a tensor."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the user asked for.

    spec: for linear, convolution and expert weights; embeddings: for token embeddings and output heads (None keeps them).
    include, exclude: glob patterns of tensor names. `include` wins over `exclude`, both win over the rules by role.
    """

    spec: QuantSpec = field(default_factory=QuantSpec)
    embeddings: QuantSpec | None = EMBEDDING
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What becomes of one tensor: quantized by `spec`, or kept (`spec` None) because of `reason`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    role: Role
    spec: QuantSpec | None
    reason: str

    @property
    def weights(self) -> int:
        """How many numbers the tensor has."""
        return prod(self.shape)

    def weight(self, spec: QuantSpec) -> Weight:
        """What it is stored as by a spec."""
        kind = DTYPES[self.dtype].kind
        assert kind is not None
        return Weight(self.shape, self.role.axis, spec, kind, self.role.stack)

    @property
    def stored(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """The (name, dtype, shape) of everything that it becomes in the output."""
        return [(self.name, self.dtype, self.shape)] if self.spec is None else self.weight(self.spec).stored(self.name)

    @property
    def stored_bytes(self) -> int:
        """Its size in the output."""
        return self.nbytes if self.spec is None else self.weight(self.spec).nbytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of every tensor of a folder, in the order of the source."""

    tensors: tuple[TensorPlan, ...]

    @property
    def quantized(self) -> tuple[TensorPlan, ...]:
        """The tensors that are quantized."""
        return tuple(tensor for tensor in self.tensors if tensor.spec is not None)

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors before."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors after."""
        return sum(tensor.stored_bytes for tensor in self.tensors)


def patterns(given: Sequence[str] | str) -> tuple[str, ...]:
    """Patterns as a tuple; a text is one pattern, not many of one letter."""
    return (given,) if isinstance(given, str) else tuple(given)


def embedding_spec(choice: QuantSpec | int | str | None) -> QuantSpec | None:
    """The spec of embeddings: itself, per channel and symmetric at a number of bits, or None for "keep"."""
    if choice is None or isinstance(choice, QuantSpec):
        return choice
    if choice == "keep":
        return None
    if isinstance(choice, str) and re.fullmatch(r"[0-9]{1,2}", choice) is None:
        raise SpecError(f"embeddings is {choice!r}; expected 'keep' or a number of bits from 2 to 8")
    return replace(EMBEDDING, bits=int(choice))


def plan_tensors(tensors: Iterable[TensorHeader], config: Mapping[str, Any], recipe: Recipe) -> Plan:
    """Decide about every tensor from headers alone; SpecError for a pattern that matches no tensor."""
    tensors = tuple(tensors)
    for pattern in (*recipe.include, *recipe.exclude):
        if not any(fnmatchcase(tensor.name, pattern) for tensor in tensors):
            raise SpecError(
                f"the pattern {pattern!r} matches none of the {len(tensors)} tensors; see their names with: splitquant inspect"
            )
    plan = Plan(tuple(_plan_tensor(tensor, config, recipe) for tensor in tensors))
    refuse_clashes(plan)
    return plan


def refuse_clashes(plan: Plan) -> None:
    """Two tensors must never be stored under one name, and a plane of one may be called as the other; TensorError."""
    owner: dict[str, str] = {}
    for tensor in plan.tensors:
        for name, _, _ in tensor.stored:
            if name in owner:
                raise TensorError(
                    f"tensors {owner[name]!r} and {tensor.name!r} would both be stored as {name!r}; "
                    f"keep the quantized one as it is with --exclude {owner[name]!r} or --exclude {tensor.name!r}"
                )
            owner[name] = tensor.name


def _plan_tensor(tensor: TensorHeader, config: Mapping[str, Any], recipe: Recipe) -> TensorPlan:
    role = role_of(tensor.name, tensor.dtype, tensor.shape, config)
    spec, reason = _decide(tensor, role, recipe)
    plan = TensorPlan(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes, role, spec, reason)
    if plan.spec is not None and plan.stored_bytes >= plan.nbytes:
        why = f"would not get smaller ({plan.stored_bytes} bytes instead of {plan.nbytes})"
        return TensorPlan(plan.name, plan.dtype, plan.shape, plan.nbytes, role, None, why)
    return plan


def _decide(tensor: TensorHeader, role: Role, recipe: Recipe) -> tuple[QuantSpec | None, str]:
    if not role.possible:
        return None, role.kept_because
    asked = next((pattern for pattern in recipe.include if fnmatchcase(tensor.name, pattern)), None)
    if asked is None:
        barred = next((pattern for pattern in recipe.exclude if fnmatchcase(tensor.name, pattern)), None)
        if barred is not None:
            return None, f"excluded by {barred!r}"
        if role.kept_because:
            return None, role.kept_because
    spec = recipe.embeddings if role.kind == "embedding" else recipe.spec
    if spec is None and asked is None:
        return None, "embeddings are kept"
    return spec or recipe.spec, "" if asked is None else f"included by {asked!r}"
