"""Time and peak memory of whole processes, taken in turn, so that ratios hold when the machine's speed drifts."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One finished process."""

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float


# A process inherits the peak memory of the one that started it, so a small one starts what is measured, and tells.
ACCOUNT = """
import os, sys, time
silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
started = time.perf_counter()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
_, status, usage = os.wait4(process, 0)
wall = time.perf_counter() - started
print(os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""


def measure(command: Sequence[str]) -> Measured:
    """Run a command to its end and read the system's account of it; RuntimeError if it fails."""
    done = subprocess.run([sys.executable, "-S", "-c", ACCOUNT, *command], capture_output=True, text=True, check=True)
    code, *figures = done.stdout.split()
    if code != "0":
        raise RuntimeError(f"{command} exited with {code}: {done.stderr}")
    return Measured(*map(float, figures))


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
