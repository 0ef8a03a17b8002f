"""Where in a model a layer is, and of which kind, read from its name alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer is.

    block: its name up to the first number, such as `model.layers.11` ("": it is in none).
    kind: the rest, without `.weight` and with `*` for further numbers, such as `self_attn.q_proj`.
    """

    block: str
    kind: str


def place_of(name: str) -> Place:
    """The place of a layer.

    Args:
        name: its parts separated by dots or slashes.
    """
    parts = re.split(r"[./]", name.strip("/"))
    if len(parts) > 1 and parts[-1] == "weight":
        parts.pop()
    at = next((i for i, part in enumerate(parts[:-1]) if _NUMBER.fullmatch(part)), None)
    head, tail = ([], parts) if at is None else (parts[: at + 1], parts[at + 1 :])
    return Place(".".join(head), ".".join("*" if _NUMBER.fullmatch(part) else part for part in tail))


def blocks_in_order(names: Iterable[str]) -> Mapping[str, int]:
    """The blocks of some layers, each with its place in the model: by name, numbers by value.

    Args:
        names: of the layers.
    """
    blocks = {place_of(name).block for name in names} - {""}
    return {block: number for number, block in enumerate(sorted(blocks, key=_natural))}


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", text)]
