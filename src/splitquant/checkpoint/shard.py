"""One shard from its file to that of the output: a job that says all it needs, so that any process may run it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitquant.checkpoint.folder import Folder, Shard
from splitquant.checkpoint.safetensors import Entry, read_header
from splitquant.checkpoint.stored import shard_header
from splitquant.checkpoint.tensor import Streams, is_cut, transform_tensor
from splitquant.errors import SourceError
from splitquant.plan.plan import Decision, Plan
from splitquant.report.outcome import Outcome
from splitquant.storage.checksum import checksum_of
from splitquant.storage.files import SourceFile, TargetFile
from splitquant.storage.memory import Buffers, MemoryBudget


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What it takes to write one shard. It can be pickled.

    Args:
        source, target: the files.
        header: of the target; places: of its tensors.
        entries: the tensors of the source; decisions: what becomes of each, in the same order.
        budget: the memory and the threads of the process that runs it.
    """

    source: Path
    target: Path
    header: bytes
    places: tuple[Entry, ...]
    entries: tuple[Entry, ...]
    decisions: tuple[Decision, ...]
    budget: MemoryBudget

    @property
    def nbytes(self) -> int:
        """The size of the target."""
        return len(self.header) + sum(place.nbytes for place in self.places)


def shard_job(folder: Folder, shard: Shard, plan: Plan, target: Path, budget: MemoryBudget) -> ShardJob:
    """The job of one shard of a folder, by the folder's plan."""
    decisions = {decision.name: decision for decision in plan.decisions}
    header, places = shard_header(shard, decisions)
    chosen = tuple(decisions[entry.name] for entry in shard.entries)
    return ShardJob(folder.path / shard.name, target, header, tuple(places), shard.entries, chosen, budget)


def is_whole(path: Path, stored: list[dict[str, Any]]) -> bool:
    """Whether a finished shard holds the very bytes that were written: those of its outcomes' checksums, and no others."""
    checksums = {name: crc for outcome in stored for name, crc in outcome["checksums"].items()}
    try:
        header = read_header(path)
        with SourceFile(path) as file:
            found = {entry.name: str(checksum_of(file, entry.start, entry.nbytes)) for entry in header.entries}
    except SourceError:
        return False
    return found == checksums


def run_shard(job: ShardJob, advance: Callable[[int], None] = lambda _: None) -> list[Outcome]:
    """Write a shard: tensors that a thread can hold go to the pool as they are, larger ones share all its threads.

    Args:
        job: the shard.
        advance: told the source bytes that are done, from any thread.

    Raises:
        SourceError, TensorError, DestinationError, SpecError (memory): each names the file and the tensor.
    """
    with ExitStack() as stack:
        source = stack.enter_context(SourceFile(job.source))
        target = stack.enter_context(TargetFile(job.target, job.nbytes))
        # Last in, first out: no thread reads or writes any more when the files are closed.
        pool = stack.enter_context(ThreadPoolExecutor(job.budget.threads))
        target.write(job.header, 0)
        streams = Streams(
            source=source,
            entries={entry.name: entry for entry in job.entries},
            target=target,
            places={place.name: place for place in job.places},
            buffers=Buffers(),
            budget=job.budget,
            advance=advance,
        )
        large = [decision for decision in job.decisions if is_cut(decision, streams)]
        small = [decision for decision in job.decisions if not is_cut(decision, streams)]
        outcomes = [transform_tensor(decision, streams, pool) for decision in large]
        by_size = sorted(small, key=lambda decision: -decision.layer.nbytes)
        outcomes += pool.map(lambda decision: transform_tensor(decision, streams, None), by_size)
    by_name = {outcome.name: outcome for outcome in outcomes}
    return [by_name[decision.name] for decision in job.decisions]
