"""Numbers of bytes, as people write and read them."""

from __future__ import annotations

import pytest

from splitquant.errors import SpecError
from splitquant.sizes import parse_bytes, shown_bytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1073741824", 1 << 30),
        ("1GiB", 1 << 30),
        ("1 gib", 1 << 30),
        ("800MB", 800_000_000),
        ("800m", 800_000_000),
        ("1.5KiB", 1536),
        ("2k", 2000),
        ("3TiB", 3 << 40),
        ("0", 0),
        ("12B", 12),
    ],
)
def test_sizes(text, nbytes):
    """A size is a number with a unit; i makes it binary."""
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", " ", "GB", "-1GB", "1e9", "1 PB", "1GiBi", "one", "0x10", "1,5GB", "nan", "inf", "9" * 400]
)
def test_no_sizes(text):
    """Anything else is a SpecError that quotes it."""
    with pytest.raises(SpecError, match=r"is not a size|too large"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (2.5e9, "2.50 GB"), (7e12, "7000.00 GB")],
)
def test_sizes_for_people(nbytes, text):
    """Sizes are in powers of ten."""
    assert shown_bytes(nbytes) == text


@pytest.mark.parametrize("nbytes", [999_950, 999_999, 999_949_999, 999_999_999])
def test_sizes_do_not_say_a_thousand(nbytes):
    """A size just below the next unit is not shown as 1000.0 of the smaller one."""
    assert not shown_bytes(nbytes).startswith("1000")
