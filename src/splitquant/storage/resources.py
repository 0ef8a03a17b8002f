"""What a run may use of the machine, and what it did use."""

from __future__ import annotations

import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from splitquant.sizes import parse_bytes
from splitquant.storage.memory import DEFAULT_MAX_MEMORY, MemoryBudget, most_threads


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use.

    Args:
        max_memory_bytes: bound on the peak memory of the process.
        threads: how many work at once; 0: one per processor, as far as the memory allows.
        force: whether what is at the destination may be replaced.
        durable: whether all bytes are on the disk before the output gets its name, so that no power cut empties it.
    """

    max_memory_bytes: int = DEFAULT_MAX_MEMORY
    threads: int = 0
    force: bool = False
    durable: bool = True

    @classmethod
    def of(
        cls,
        max_memory: int | str = DEFAULT_MAX_MEMORY,
        threads: int = 0,
        *,
        force: bool = False,
        durable: bool = True,
    ) -> Resources:
        """Resources with a bound on memory in bytes, or as text such as "1GiB"; SpecError where it is no size."""
        return cls(parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory, threads, force, durable)

    def budget(self, tensors: int = 0) -> MemoryBudget:
        """The checked memory budget for a model of so many tensors; SpecError where the memory is not enough."""
        threads = self.threads or min(processors(), most_threads(self.max_memory_bytes, tensors))
        return MemoryBudget(self.max_memory_bytes, threads, tensors)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far.

    Linux carries getrusage's figure over from the parent through fork and exec, so the process's own status comes first.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
