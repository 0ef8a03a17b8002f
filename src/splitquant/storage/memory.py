"""How much of a tensor is in memory at a time, from one bound on the whole process."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from splitquant.core.arrays import U8
from splitquant.errors import SpecError

MIB = 1 << 20
RESERVE_BYTES = (
    160 * MIB
)  # the interpreter, its libraries, headers, histograms and the temporaries of the NumPy kernels
RESERVE_PER_THREAD = 24 * MIB
LEAST_PER_THREAD = 8 * MIB
RESERVE_PER_TENSOR = 10_000  # headers, plan, outcome and their JSON
WINDOW_BYTES = (
    48 * MIB
)  # windows of a tensor that is cut: large enough to stream, small enough to share between threads
WHOLE_BYTES = 2 * WINDOW_BYTES  # a matrix up to this size, with its planes, is read once and held; larger ones never
DEFAULT_MAX_MEMORY = 1024 * MIB


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """A bound on the peak memory of the process, and what shares it: the threads, and the tables of so many tensors."""

    max_memory_bytes: int
    threads: int
    tensors: int = 0

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise SpecError(f"threads is {self.threads}; expected at least 1, or 0 for all processors")
        least = self._reserve_bytes + self.threads * (RESERVE_PER_THREAD + LEAST_PER_THREAD)
        if self.max_memory_bytes < least:
            tables = f" and the tables of {self.tensors:,} tensors" if self.tensors else ""
            several = self.threads > 1
            raise SpecError(
                f"max-memory is {self.max_memory_bytes / MIB:.0f} MiB; {self.threads} thread{'s' * several}{tables} "
                f"need{'s' * (not several)} at least {-(-least // MIB)} MiB: allow more"
                + ", or use fewer threads"
                * several
            )

    @property
    def _reserve_bytes(self) -> int:
        return RESERVE_BYTES + self.tensors * RESERVE_PER_TENSOR

    @property
    def thread_bytes(self) -> int:
        """What one thread may hold of a tensor: input and output of its window together."""
        return (self.max_memory_bytes - self._reserve_bytes) // self.threads - RESERVE_PER_THREAD

    def windows(self, what: str, rows: int, row_bytes: int, *, can_be_cut: bool = True) -> list[tuple[int, int]]:
        """Row ranges of a matrix whose rows take `row_bytes` each in memory (input and output); one where it can be held.

        Raises SpecError, naming `what`, where not even a row (or, if it cannot be cut, the whole) may be held.
        """
        least = row_bytes if can_be_cut else rows * row_bytes
        if least > self.thread_bytes:
            part = "a row of it" if can_be_cut else "it, since its output channels are not its first axis,"
            raise SpecError(
                f"{what}: {part} has to be held whole ({least / MIB:.0f} MiB, of {self.thread_bytes / MIB:.0f} MiB that a thread may "
                "hold); allow more with --max-memory" + ", or use fewer threads" * (self.threads > 1)
            )
        if not can_be_cut or rows * row_bytes <= min(self.thread_bytes, WHOLE_BYTES):
            return [(0, rows)]
        step = max(1, min(self.thread_bytes, WINDOW_BYTES) // max(1, row_bytes))
        return [(start, min(start + step, rows)) for start in range(0, rows, step)]


class Buffers(threading.local):
    """Scratch memory that each thread keeps and reuses, so that windows do not fault in fresh pages."""

    def __init__(self) -> None:
        self._held: dict[str, U8] = {}

    def get(self, name: str, nbytes: int) -> U8:
        """A uint8 array of `nbytes`, with whatever was in it; valid until the same name is asked for again."""
        held = self._held.get(name)
        if held is None or held.nbytes < nbytes:
            self._held.pop(name, None)
            del held
            held = self._held[name] = np.empty(max(1, nbytes), np.uint8)
        return held[:nbytes]


def most_threads(max_memory_bytes: int, tensors: int = 0) -> int:
    """How many threads a memory bound is enough for, beside the tables of so many tensors; at least 1."""
    free = max_memory_bytes - RESERVE_BYTES - tensors * RESERVE_PER_TENSOR
    return max(1, free // (RESERVE_PER_THREAD + LEAST_PER_THREAD))
