"""Batches, progress and resume."""

from __future__ import annotations

import pytest

from splitquant.errors import DestinationError, SourceError, SpecError
from splitquant.evaluate.run import Run


def squares(calls):
    """Computes squares and notes what it was asked for."""

    def compute(some):
        calls.append(list(some))
        return [i * i for i in some]

    return compute


def test_batches_and_progress():
    """Pieces are computed in the given order, so many at once, and come back in theirs."""
    calls, told = [], []
    run = Run(2, lambda *what: told.append(what))
    assert run.pieces("t", (None, 0), [4, 3, 2, 1, 0], squares(calls)) == [0, 1, 4, 9, 16]
    assert calls == [[4, 3], [2, 1], [0]]
    assert told == [("t", 0, 5), ("t", 2, 5), ("t", 4, 5), ("t", 5, 5)]


def test_state_is_taken_up(tmp_path):
    """After an interruption only what is left is computed, even if the last line was cut."""
    state, calls = tmp_path / "state", []
    run = Run(2, state=state)

    def fails(some):
        if 1 in some:
            raise KeyboardInterrupt
        return squares(calls)(some)

    with pytest.raises(KeyboardInterrupt):
        run.pieces("t", ("model", 0), [4, 3, 2, 1, 0], fails)
    with state.open("a") as file:
        file.write('{"key": "half a li')
    assert run.pieces("t", ("model", 0), [4, 3, 2, 1, 0], squares(calls)) == [0, 1, 4, 9, 16]
    assert calls == [[4, 3], [2, 1], [0]]
    assert run.pieces("t", ("model", 0), range(5), squares(calls)) == [0, 1, 4, 9, 16]
    assert len(calls) == 3


@pytest.mark.parametrize(("task", "identity"), [("u", ("model", 0)), ("t", ("other", 0)), ("t", ("model", 1))])
def test_state_of_something_else_is_not_taken(tmp_path, task, identity):
    """Another task, model or question is computed again, and both stay in the file."""
    run, calls = Run(state=tmp_path / "state"), []
    run.pieces("t", ("model", 0), range(3), squares(calls))
    run.pieces(task, identity, range(3), squares(calls))
    assert len(calls) == 2
    run.pieces("t", ("model", 0), range(3), squares(calls))
    assert len(calls) == 2


@pytest.mark.parametrize(
    "content", [b"my notes\n", b"", b'{"a": 1}\n', b'{"splitquant_evaluate_state": 1}\n[]\n', b"\xff\n"]
)
def test_other_files_are_refused(tmp_path, content):
    """A file that is no state is left as it is."""
    state = tmp_path / "notes"
    state.write_bytes(content)
    with pytest.raises(SourceError, match="is no state of splitquant evaluate"):
        Run(state=state).pieces("t", ("model", 0), range(3), squares([]))
    assert state.read_bytes() == content


def test_state_needs_files(tmp_path):
    """What is in memory only has nothing to be known by."""
    with pytest.raises(SpecError, match="in memory only; leave it out"):
        Run(state=tmp_path / "s").pieces("t", (None, 0), range(3), squares([]))


def test_state_that_cannot_be_written(tmp_path):
    """A clear error before any work."""
    calls = []
    with pytest.raises(DestinationError, match="cannot be written"):
        Run(state=tmp_path / "no" / "s").pieces("t", ("model", 0), range(3), squares(calls))
    assert calls == []


def test_batch_of_none():
    """At least one at once."""
    with pytest.raises(SpecError, match="batch size is 0; expected 1 or more"):
        Run(0)
