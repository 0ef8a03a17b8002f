"""What the user asked for, and the one way in which patterns find tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.errors import SpecError


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the user asked for.

    Args:
        spec: for linear, convolution and expert weights.
        embeddings: for token embeddings and output heads; None keeps them.
        include, exclude: names or glob patterns. `include` wins over `exclude`, both win over the rules of taste.
    """

    spec: QuantSpec = field(default_factory=QuantSpec)
    embeddings: QuantSpec | None = EMBEDDING
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def patterns(given: Sequence[str] | str) -> tuple[str, ...]:
    """Patterns as a tuple; a text is one pattern, not many of one letter."""
    return (given,) if isinstance(given, str) else tuple(given)


def first_match(names: Sequence[str], given: Iterable[str], known: Collection[str] = ()) -> str | None:
    """The pattern that finds a tensor with these names: one that is a name itself, else the first glob that fits.

    Exists because names may look like globs: exporters make such as `layers[0].weight`. A pattern that is one of the
    `known` names of the model is that name and no glob.
    """
    given = tuple(given)
    exact = next((pattern for pattern in given if pattern in names), None)
    if exact is not None:  # "" is the name of a model that is itself one layer
        return exact
    globs = (pattern for pattern in given if pattern not in known)
    return next((glob for glob in globs if any(fnmatchcase(name, glob) for name in names)), None)


def refuse_idle_patterns(given: Iterable[str], names: Sequence[str], what: str) -> None:
    """SpecError for a pattern that finds none of the names; `what` says of what they are, and where they can be seen."""
    for pattern in given:
        if first_match(names, (pattern,)) is None:
            raise SpecError(f"the pattern {pattern!r} matches none of the {len(names)} {what}")


def embedding_spec(choice: QuantSpec | int | str | None) -> QuantSpec | None:
    """The spec of embeddings: itself, per channel and symmetric at a number of bits, or None for "keep"."""
    if choice is None or isinstance(choice, QuantSpec):
        return choice
    if choice == "keep":
        return None
    if type(choice) is not int and not (isinstance(choice, str) and re.fullmatch(r"[0-9]{1,2}", choice)):
        raise SpecError(f"embeddings is {choice!r}; expected 'keep' or a number of bits from 2 to 8")
    return replace(EMBEDDING, bits=int(choice))
