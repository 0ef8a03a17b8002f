"""The main job: a Hugging Face folder in, a low-bit folder out, by a plan that was made from headers alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from splitquant.checkpoint.folder import Folder
from splitquant.checkpoint.shard import is_whole, run_shard, shard_job
from splitquant.checkpoint.sidecar import notes_on, small_files_bytes, write_small_files
from splitquant.core.kernels import kernels
from splitquant.format.config import FORMAT_VERSIONS
from splitquant.plan.plan import Plan
from splitquant.report.outcome import Outcome, Report, Run
from splitquant.storage.resources import Resources, peak_memory_bytes
from splitquant.storage.workplace import Workplace, check_destination, check_room, fingerprint_of
from splitquant.version import __version__


def apply_plan(
    folder: Folder,
    plan: Plan,
    destination: Path,
    resources: Resources,
    advance: Callable[[int], None] = lambda _: None,
) -> Report:
    """Quantize a folder as planned.

    The output appears complete or not at all, and its bytes depend on the source and the plan alone.

    Args:
        folder: the source.
        plan: what becomes of every tensor.
        destination: what to write.
        resources: bound the peak memory, whatever the model.
        advance: told the source bytes that are done, from any thread.

    Raises:
        SourceError, TensorError, SpecError, DestinationError: on an error nothing is left.
    """
    started = time.perf_counter()
    budget = resources.budget(len(plan.decisions))
    check_destination(folder.path, destination, force=resources.force)
    check_room(destination, plan.stored_bytes + _other_bytes(folder) + small_files_bytes(len(plan.decisions)))
    outcomes: list[Outcome] = []
    resumed = 0
    with Workplace(
        destination, _fingerprint(folder, plan), force=resources.force, durable=resources.durable
    ) as workplace:
        for shard in folder.shards:
            stored = workplace.finished(shard.name, is_whole)
            if stored is not None:
                done = [Outcome.from_dict(item) for item in stored]
                advance(sum(outcome.source_bytes for outcome in done))
                resumed += 1
            else:
                done = run_shard(shard_job(folder, shard, plan, workplace.growing(shard.name), budget), advance)
                workplace.finish(shard.name, [outcome.to_dict() for outcome in done], folder.path / shard.name)
            outcomes += done
        report = Report(tuple(outcomes), left_out=folder.left_out, notes=notes_on(folder))
        write_small_files(folder, plan, report, workplace)
        workplace.publish()
    run = Run(
        source=str(folder.path),
        destination=str(destination),
        wall_seconds=time.perf_counter() - started,
        peak_bytes=peak_memory_bytes(),
        threads=budget.threads,
        kernels=kernels().name,
        resumed_shards=resumed,
    )
    return replace(report, run=run)


def _other_bytes(folder: Folder) -> int:
    return sum((folder.path / name).stat().st_size for name in folder.other_files)


def _fingerprint(folder: Folder, plan: Plan) -> str:
    """Whatever decides the bytes of the shards: the version, the files as they are, and the plan."""
    digest = hashlib.sha256(f"{__version__} {FORMAT_VERSIONS[-1]}".encode())
    for shard in folder.shards:
        digest.update(fingerprint_of(folder.path / shard.name).encode())
        digest.update(repr(sorted(shard.metadata.items())).encode(errors="backslashreplace"))
    for decision in plan.decisions:
        digest.update(repr(decision).encode())
    return digest.hexdigest()
