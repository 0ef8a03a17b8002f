"""Talk with the person at the terminal: progress on standard error, results on standard output.

rich is imported where something is drawn: a quiet run does not wait for it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from splitquant.cli.signals import exit_code_of
from splitquant.errors import DestinationError, SplitQuantError
from splitquant.storage.files import write_whole


def say(text: str) -> None:
    """A line for the person, on standard error."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """Text without control characters but line ends: names of tensors and files may hold what a terminal would obey."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


CAN_GO_ON = "the same command takes up what is finished"


class InterruptedByUserError(SplitQuantError):
    """A run was interrupted, see `cli.signals`."""


@contextmanager
def byte_progress(
    title: str, total: int, *, quiet: bool, after: str = "nothing was written"
) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, on a terminal only; yields what to tell finished bytes to, from any thread.

    after: what an interrupted run leaves.
    """
    try:
        yield from _byte_progress(title, total, quiet=quiet)
    except KeyboardInterrupt as stop:
        error = InterruptedByUserError(f"interrupted; {after}")
        error.exit_code = exit_code_of(stop)
        raise error from None


def _byte_progress(title: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as progress:
        task = progress.add_task(title, total=total)
        yield lambda nbytes: progress.advance(task, nbytes)


@contextmanager
def count_progress(*, quiet: bool, after: str) -> Iterator[Callable[[str, int, int], None]]:
    """Bars of tasks with time left, on a terminal only; yields what to tell a task, what is done of it and what there is.

    after: what an interrupted run leaves.
    """
    try:
        yield from _count_progress(quiet=quiet)
    except KeyboardInterrupt:
        raise InterruptedByUserError(f"interrupted; {after}") from None


def _count_progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as progress:
        tasks: dict[tuple[str, int], Any] = {}

        def tell(name: str, done: int, total: int) -> None:
            if (name, total) not in tasks or progress.tasks[tasks[name, total]].finished:
                tasks[name, total] = progress.add_task(name, total=total)
            progress.update(tasks[name, total], completed=done)

        yield tell


def check_json_target(target: Path | None, *taken: Path) -> None:
    """Refuse a place for a JSON result that cannot be written, or that is one of those taken, before any work is done."""
    if target is None or str(target) == "-":
        return
    if any(target.resolve() == other.resolve() for other in taken):
        raise DestinationError(f"{target}: is the source or the destination itself; choose another file")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise DestinationError(f"{target}: cannot be written (no such folder, or itself a folder); choose another file")


def write_json(target: Path | None, data: Any) -> None:
    """Write a JSON result to a file, or to standard output for '-'; nothing for None."""
    if target is None:
        return
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    if str(target) == "-":
        sys.stdout.write(text.encode(errors="backslashreplace").decode())
        return
    write_whole(target, text.encode(errors="backslashreplace"))
