"""The memory budget: what is refused, how rows are cut."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitquant.errors import SpecError
from splitquant.storage import memory
from splitquant.storage.memory import MIB, MemoryBudget
from splitquant.storage.resources import Resources


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
    assert 1 <= Resources().budget().threads <= processors


@settings(deadline=None, derandomize=True)
@given(rows=st.integers(1, 5000), row_bytes=st.integers(0, 80 * MIB), window=st.integers(1, 64 * MIB))
def test_windows_cover_all_rows_once(rows, row_bytes, window):
    """Windows are rows in order, each once, and hold no more than a thread may (or a single row)."""
    budget = MemoryBudget(1 << 30, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "WINDOW_BYTES", window)
        patch.setattr(memory, "WHOLE_BYTES", 0)
        pieces = budget.windows("t", rows, row_bytes)
    assert [row for first, last in pieces for row in range(first, last)] == list(range(rows))
    assert all(
        row_bytes == 0 or last - first == 1 or (last - first) * row_bytes <= min(window, budget.thread_bytes)
        for first, last in pieces
    )


def test_what_cannot_be_held_is_refused():
    """A row, or a whole that cannot be cut, beyond what a thread may hold is refused by name."""
    budget = MemoryBudget(512 * MIB, 2)
    with pytest.raises(SpecError, match=r"f: tensor 't': a row of it has to be held whole \(400 MiB.*--max-memory"):
        budget.windows("f: tensor 't'", 2, 400 * MIB)
    with pytest.raises(SpecError, match=r"f: tensor 't': it, since its output channels.*400 MiB"):
        budget.windows("f: tensor 't'", 400, MIB, can_be_cut=False)
    assert budget.windows("t", 400, MIB // 8, can_be_cut=False) == [(0, 400)]


def test_tables_of_many_tensors_count():
    """Many tensors need memory of their own, whatever their size, and leave less for windows."""
    assert MemoryBudget(1 << 30, 2, tensors=10_000).thread_bytes < MemoryBudget(1 << 30, 2).thread_bytes
    with pytest.raises(SpecError, match="the tables of 90,000 tensors"):
        MemoryBudget(256 * MIB, 2, tensors=90_000)


def test_one_thread_where_two_are_too_many(monkeypatch):
    """Where nobody said how many threads, there are as many as the memory is enough for, the tables of tensors included."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(2)))
    assert Resources(256 * MIB).budget(5000).threads == 1
    assert Resources(256 * MIB).budget(10).threads == 2
    with pytest.raises(SpecError, match=r"2 threads and the tables of 5,000 tensors need .* or use fewer threads"):
        Resources(256 * MIB, threads=2).budget(5000)
    with pytest.raises(
        SpecError, match=r"1 thread and the tables of 90,000 tensors needs at least \d+ MiB: allow more$"
    ):
        Resources(256 * MIB).budget(90_000)
