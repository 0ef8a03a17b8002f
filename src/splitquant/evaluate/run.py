"""How an evaluation is run: how much at once, who is told of its progress, and where what is finished is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitquant.errors import SourceError, SpecError
from splitquant.storage.files import destination_error

Progress = Callable[[str, int, int], None]
_FIRST = {"splitquant_evaluate_state": 1}


def _silent(task: str, done: int, total: int) -> None:
    del task, done, total


@dataclass(frozen=True, slots=True)
class Run:
    """How to run.

    batch: questions, windows, sentences or images at once; it never changes a figure by more than rounding. progress: told
    the task, what is done of it and what there is. state: a file to which every finished piece is added; a run with the
    same model, data and options takes them from there.
    """

    batch: int = 8
    progress: Progress = _silent
    state: Path | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise SpecError(f"the batch size is {self.batch}; expected 1 or more")

    def pieces(
        self,
        task: str,
        identity: tuple[str | None, Any],
        order: Sequence[int],
        compute: Callable[[Sequence[int]], Sequence[Any]],
        groups: Callable[[Sequence[int]], Iterator[Sequence[int]]] | None = None,
    ) -> list[Any]:
        """Compute the pieces of a task by batches, but for those that an earlier run has finished.

        Args:
            task: its name, for progress.
            identity: the fingerprint of the model (None: it has none, so nothing can be kept) and everything else that the
                result depends on, as JSON.
            order: all pieces 0 to n-1 in the order in which to compute them.
            compute: given numbers of pieces, their results (JSON), in the same order.
            groups: divides what is left of the order into batches; None: `batch` at a time.

        Returns:
            The results by the number of their piece.

        Raises:
            SpecError: where a state is asked for and the model has no fingerprint. SourceError, DestinationError: the state
                file is none of ours, or cannot be written.
        """
        kept = _Kept(self.state, task, identity)
        found = dict(kept.finished)
        left = [piece for piece in order if piece not in found]
        self.progress(task, len(found), len(order))
        for some in groups(left) if groups is not None else by_number(left, self.batch):
            for piece, value in zip(some, compute(some), strict=True):
                found[piece] = value
                kept.add(piece, value)
            self.progress(task, len(found), len(order))
        return [found[piece] for piece in range(len(order))]


PLAIN = Run()
"""Eight at a time, silently, nothing kept."""


def by_number(pieces: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """So many at a time."""
    for start in range(0, len(pieces), size):
        yield pieces[start : start + size]


class _Kept:
    """The finished pieces of one task in a state file; of no file, none."""

    def __init__(self, path: Path | None, task: str, identity: tuple[str | None, Any]) -> None:
        self.path, self.finished = path, dict[int, Any]()
        if path is None:
            return
        if identity[0] is None:
            raise SpecError(
                f"{path}: a state is of models that lie in files, and this one is in memory only; leave it out"
            )
        self.key = hashlib.sha256(json.dumps([task, *identity]).encode()).hexdigest()[:24]
        self._read(path)

    def _read(self, path: Path) -> None:
        try:
            if not path.exists():
                path.write_text(json.dumps(_FIRST) + "\n", encoding="utf-8")
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise destination_error(path, error) from error
        whole, rest = lines[:-1], lines[-1]  # a killed run may have left half a line
        try:
            entries = [json.loads(line) for line in whole]
            if not entries or entries[0] != _FIRST:
                raise ValueError(path)  # noqa: TRY301 - said below
            self.finished = {int(e["piece"]): e["value"] for e in entries[1:] if e["key"] == self.key}
        except (ValueError, TypeError, KeyError) as error:
            raise SourceError(
                f"{path}: is no state of splitquant evaluate, or a damaged one; choose another file, or remove it"
            ) from error
        if rest:
            with path.open("r+b") as file:
                file.truncate(len(b"\n".join(whole)) + 1)

    def add(self, piece: int, value: Any) -> None:
        """Keep a finished piece."""
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": self.key, "piece": piece, "value": value}) + "\n")
        except OSError as error:
            raise destination_error(self.path, error) from error
