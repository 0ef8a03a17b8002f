"""Numbers of bytes, as people write and read them."""

from __future__ import annotations

import re

from splitquant.errors import SpecError


def parse_bytes(text: str) -> int:
    """Read a size such as `800MB`, `1GiB` or `1073741824`; SpecError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kKmMgGtT]?)(i?)[bB]?\s*", text)
    if match is None:
        raise SpecError(f"{text!r} is not a size; expected a number with a unit, for instance 1GiB or 800MB")
    number, unit, binary = match.groups()
    power = " kmgt".index(unit.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def shown_bytes(nbytes: float) -> str:
    """A number of bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if round(nbytes, 1) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"
