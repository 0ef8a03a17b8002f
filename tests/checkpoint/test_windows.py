"""The memory budget: what is refused, how rows are cut, how sizes are read."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitquant.checkpoint import windows
from splitquant.checkpoint.convert import Resources
from splitquant.checkpoint.windows import MIB, MemoryBudget, parse_bytes
from splitquant.errors import SpecError


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


@pytest.mark.parametrize("threads", [0, -3])
def test_threads_below_one(threads):
    """A budget is shared by at least one thread."""
    with pytest.raises(SpecError, match=f"threads is {threads}"):
        MemoryBudget(1 << 30, threads)


def test_too_little_memory_names_what_is_needed():
    """A bound that the threads cannot keep is refused with the least one."""
    with pytest.raises(SpecError, match=r"max-memory is 100 MiB; 2 threads need at least (\d+) MiB") as error:
        MemoryBudget(100 * MIB, 2)
    least = int(str(error.value).split("at least ")[1].split()[0])
    MemoryBudget(least * MIB, 2)
    with pytest.raises(SpecError):
        MemoryBudget((least - 1) * MIB, 2)


@pytest.mark.parametrize("processors", [1, 8, 64, 512])
def test_default_resources_work_on_any_machine(monkeypatch, processors):
    """With all defaults a run starts on any machine: it takes no more processors than the memory allows."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    assert 1 <= Resources().budget.threads <= processors


@settings(deadline=None, derandomize=True)
@given(rows=st.integers(0, 5000), row_bytes=st.integers(0, 80 * MIB), window=st.integers(1, 64 * MIB))
def test_windows_cover_all_rows_once(rows, row_bytes, window):
    """Windows are rows in order, each once, and hold no more than a thread may (or a single row)."""
    budget = MemoryBudget(1 << 30, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_BYTES", window)
        pieces = list(budget.windows(rows, row_bytes))
    assert [row for first, last in pieces for row in range(first, last)] == list(range(rows))
    assert all(
        last - first == 1 or (last - first) * row_bytes <= min(window, budget.thread_bytes) for first, last in pieces
    )
