"""Time and peak memory of whole processes, taken in turn, so that ratios hold when the machine's speed drifts."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One finished process."""

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float


def measure(command: Sequence[str]) -> Measured:
    """Run a command to its end and read the system's account of it; RuntimeError if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command} exited with {process.returncode}: {said.decode()}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def in_turn(commands: Sequence[Sequence[str]], runs: int, before: Callable[[], None]) -> list[list[Measured]]:
    """Run the commands A B C, A B C, ...; `before` each process. One warm-up round is not counted."""
    rounds = []
    for _ in range(runs + 1):
        results = []
        for command in commands:
            before()
            results.append(measure(command))
        rounds.append(results)
    return rounds[1:]


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)
