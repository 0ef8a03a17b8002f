"""How many weights share a scale (what compressed-tensors calls a strategy): one value, parsed once from its text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, overload

from splitquant.errors import SpecError


@dataclass(frozen=True, slots=True)
class Granularity:
    """How many weights share one row_scale.

    | text      | row_scale shape          | meaning                              |
    |-----------|--------------------------|--------------------------------------|
    | `tensor`  | none                     | one set of levels, no row_scale      |
    | `channel` | `[rows, 1]`              | one row_scale per output channel     |
    | `group:N` | `[rows, ceil(cols / N)]` | one row_scale per N weights of a row |

    kind: the word of the text; size: N, and 0 for the others.
    """

    kind: Literal["tensor", "channel", "group"]
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> Granularity:
        """Read `tensor`, `channel` or `group:N`.

        Args:
            text: one of the three, N at least 2, as `str` gives it.

        Raises:
            SpecError: for anything else.
        """
        if text == "tensor":
            return cls("tensor")
        if text == "channel":
            return cls("channel")
        match = re.fullmatch(r"group:([1-9][0-9]{0,8})", text) if isinstance(text, str) else None
        if match is not None and int(match[1]) >= 2:
            return cls("group", int(match[1]))
        raise SpecError(f"granularity is {text!r}; expected 'tensor', 'channel' or 'group:N' with N of at least 2")

    def __str__(self) -> str:
        return f"group:{self.size}" if self.kind == "group" else self.kind

    def group_size(self, cols: int) -> int:
        """How many neighbouring weights of a row share a row_scale (0: there is no row_scale).

        Args:
            cols: weights of a row.
        """
        return {"tensor": 0, "channel": cols, "group": self.size}[self.kind]

    def groups(self, cols: int) -> int:
        """How many row_scales a row has.

        Args:
            cols: weights of a row.
        """
        size = self.group_size(cols)
        return 0 if size == 0 else -(-cols // size)


class GranularityField:
    """The type of a dataclass field that takes a granularity or its text and holds the granularity.

    Exists for type checkers, which read it as the setter and the getter say; `__post_init__` parses.
    """

    @overload
    def __get__(self, spec: None, owner: type) -> str: ...
    @overload
    def __get__(self, spec: object, owner: type) -> Granularity: ...
    def __get__(self, spec: object | None, owner: type) -> Granularity | str:
        return "channel"

    def __set__(self, spec: object, value: Granularity | str) -> None:
        raise NotImplementedError
