"""From layers and a recipe to a plan, for every adapter alike: one order of reasons."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.plan.layers import Layer
from splitquant.plan.plan import Decision, Plan
from splitquant.plan.recipe import Recipe, first_match, refuse_idle_patterns

Price = Callable[[Layer, QuantSpec], int]
"""The bytes that a layer takes by a spec."""
TENSORS = "tensors; see their names with: splitquant inspect"


def plane_bytes(layer: Layer, spec: QuantSpec) -> int:
    """The price of a layer that is stored as planes."""
    return layer.weight(spec).nbytes


def decide(  # noqa: PLR0913 - what an adapter brings
    layers: Iterable[Layer],
    recipe: Recipe,
    price: Price | None = plane_bytes,
    *,
    what: str = TENSORS,
    more_names: Sequence[str] = (),
    may_grow: bool = False,
) -> Plan:
    """Decide about every layer.

    The first reason that holds is given: it cannot be quantized; a pattern of `exclude` finds it; a rule of taste keeps it;
    embeddings are kept; it would not get smaller; it shares its weight with a layer that is kept. A pattern of `include`
    takes away all of these but the first and the last two. An embedding that is included while embeddings are kept is
    quantized as embeddings usually are (`EMBEDDING`).

    Args:
        layers: in the order of the source.
        recipe: what was asked for.
        price: what a layer takes by a spec; None: it is of no concern.
        what: what errors call the layers, and where their names can be seen.
        more_names: what patterns may name beside layers, in vain but without an error.
        may_grow: whether what would not get smaller is quantized all the same.

    Raises:
        SpecError: for a pattern that finds nothing.
    """
    layers = tuple(layers)
    names = dict.fromkeys((*(name for layer in layers for name in layer.names), *more_names))
    refuse_idle_patterns((*recipe.include, *recipe.exclude), list(names), what)
    return settled([_wanted(layer, recipe, names) for layer in layers], price, may_grow=may_grow)


def kept(layer: Layer, reason: str) -> Decision:
    """A layer that stays as it is."""
    return Decision(layer, None, reason, layer.nbytes if layer.tied_to is None else 0)


def why_not_smaller(nbytes: int, layer: Layer) -> str:
    """The reason of what is kept since quantizing would not shrink it."""
    return f"would not get smaller ({nbytes} bytes instead of {layer.nbytes})"


def settled(wanted: Sequence[Decision], price: Price | None, *, may_grow: bool = False) -> Plan:
    """The plan of what is wanted of every layer: alike where weights are shared, with the bytes that it takes.

    Args:
        wanted: in the order of the source; their `stored_bytes` count for nothing.
        price: what a layer takes by a spec; None: it is of no concern.
        may_grow: whether what would not get smaller is quantized all the same.
    """
    sharing: dict[str, list[Decision]] = {}
    for decision in wanted:
        sharing.setdefault(decision.layer.owner, []).append(decision)
    decided = {d.name: d for group in sharing.values() for d in _priced(_alike(group), price, may_grow=may_grow)}
    return Plan(tuple(decided[decision.name] for decision in wanted))


def _wanted(layer: Layer, recipe: Recipe, known: Collection[str]) -> Decision:
    """What is to become of a layer, whatever it takes then (`stored_bytes` is still that of the source)."""
    if not layer.possible:
        return kept(layer, layer.kept_because)
    asked = first_match(layer.names, recipe.include, known)
    if asked is None:
        barred = first_match(layer.names, recipe.exclude, known)
        if barred is not None:
            return kept(layer, f"excluded by {barred!r}")
        if layer.kept_because:
            return kept(layer, layer.kept_because)
    spec: QuantSpec | None = recipe.spec
    if layer.role == "embedding":
        spec = recipe.embeddings or (None if asked is None else EMBEDDING)
    if spec is None:
        return kept(layer, "embeddings are kept")
    return replace(kept(layer, "" if asked is None else f"included by {asked!r}"), spec=spec)


def _alike(sharing: list[Decision]) -> list[Decision]:
    """A weight that several layers share is quantized in all of them, alike, or in none.

    A table decides for the others, else the first of them: a plan file may say something else of each.
    """
    decides = next((d for d in sharing if d.spec is not None and d.layer.role == "embedding"), sharing[0])
    found = []
    for decision in sharing:
        other = next((d for d in sharing if d.spec is None or d.layer.axis != decision.layer.axis), None)
        if decision.spec is None:
            found.append(decision)
        elif other is None:
            found.append(replace(decision, spec=decides.spec))
        else:
            how = "kept" if other.spec is None else "laid out otherwise"
            found.append(kept(decision.layer, f"its weight is that of {other.name!r}, which is {how}"))
    return found


def _priced(sharing: list[Decision], price: Price | None, *, may_grow: bool) -> list[Decision]:
    """The bytes of what is quantized, counted at the first of those that share them; none that would not get smaller."""
    first = sharing[0]
    if first.spec is None or price is None:
        return sharing
    nbytes = price(first.layer, first.spec)
    if nbytes >= first.layer.nbytes and not may_grow:
        return [kept(decision.layer, why_not_smaller(nbytes, first.layer)) for decision in sharing]
    return [replace(first, stored_bytes=nbytes), *sharing[1:]]
