"""The main job: a Hugging Face folder in, a low-bit folder out. Plan from headers, then apply shard by shard."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from splitquant import __version__
from splitquant.checkpoint.carry import config_text, index_text, report_pieces
from splitquant.checkpoint.folder import Folder, Shard, open_folder
from splitquant.checkpoint.safetensors import Entry, build_header
from splitquant.checkpoint.tensor import Streams, is_cut, transform_tensor
from splitquant.core.kernels import kernels
from splitquant.errors import SourceError
from splitquant.format.config import FORMAT_VERSION
from splitquant.plan.plan import Plan, Recipe, TensorPlan, plan_tensors
from splitquant.report.card import CARD_NAME, model_card, original_card_name
from splitquant.report.outcome import REPORT_NAME, Report, Run, TensorOutcome
from splitquant.storage.files import SourceFile, TargetFile
from splitquant.storage.memory import MIB, Buffers, MemoryBudget
from splitquant.storage.resources import Resources, peak_memory_bytes
from splitquant.storage.workplace import Workplace, check_destination, check_room

_MARKS = (
    "weight_scale_inv",
    "weight_scale",
    "qweight",
    "qzeros",
    ".weight_packed",
    "_blocks",
    ".weight.absmax",
    ".SCB",
)
_SMALL_FILES_BYTES = 64 * MIB  # room for what is written beside the tensors


def open_float_folder(source: Path) -> Folder:
    """Read the headers of a folder that is to be quantized; SourceError for one that is already."""
    folder = open_folder(source)
    _refuse_quantized(folder)
    return folder


def plan_folder(source: Path, recipe: Recipe) -> tuple[Folder, Plan]:
    """What would become of every tensor of a folder; reads headers only."""
    folder = open_float_folder(source)
    return folder, plan_tensors((entry for shard in folder.shards for entry in shard.entries), folder.config, recipe)


def quantize_folder(
    source: Path,
    destination: Path,
    recipe: Recipe,
    resources: Resources,
    advance: Callable[[int], None] = lambda _: None,
) -> Report:
    """Quantize a folder by a recipe, see `apply_plan`."""
    return apply_plan(*plan_folder(source, recipe), destination, resources, advance)


def apply_plan(
    folder: Folder,
    plan: Plan,
    destination: Path,
    resources: Resources,
    advance: Callable[[int], None] = lambda _: None,
) -> Report:
    """Quantize a folder as planned; `advance` is told the source bytes as they are done, from any thread.

    Peak memory is bounded by `resources`, whatever the model. The output appears complete or not at all, and its bytes
    depend on the source and the plan alone. Raises SourceError, TensorError, SpecError, DestinationError.
    """
    started = time.perf_counter()
    source = folder.path
    budget = resources.budget(len(plan.tensors))
    check_destination(source, destination, resources.force)
    check_room(destination, plan.stored_bytes + _other_bytes(folder) + _SMALL_FILES_BYTES)
    plans = {tensor.name: tensor for tensor in plan.tensors}
    outcomes: list[TensorOutcome] = []
    resumed = 0
    with Workplace(destination, _fingerprint(folder, plan)) as workplace:
        for shard in folder.shards:
            stored = workplace.finished(shard.name)
            if stored is not None:
                done = [TensorOutcome.from_dict(item) for item in stored]
                advance(sum(outcome.source_bytes for outcome in done))
                resumed += 1
            else:
                done = _write_shard(folder, shard, plans, workplace, budget, advance)
                workplace.finish(shard.name, [outcome.to_dict() for outcome in done])
            outcomes += done
        report = Report(tuple(outcomes), left_out=folder.left_out)
        _write_small_files(folder, plan, report, workplace)
        workplace.publish()
    run = Run(
        source=str(source),
        destination=str(destination),
        wall_seconds=time.perf_counter() - started,
        peak_bytes=peak_memory_bytes(),
        threads=budget.threads,
        kernels=kernels().name,
        resumed_shards=resumed,
    )
    return replace(report, run=run)


def shard_header(shard: Shard, plans: Mapping[str, TensorPlan]) -> tuple[bytes, list[Entry]]:
    """The header of a shard of the output, and the places of its tensors."""
    stored = [item for entry in shard.entries for item in plans[entry.name].stored]
    return build_header(stored, shard.metadata or {"format": "pt"})


def _write_shard(
    folder: Folder,
    shard: Shard,
    plans: Mapping[str, TensorPlan],
    workplace: Workplace,
    budget: MemoryBudget,
    advance: Callable[[int], None],
) -> list[TensorOutcome]:
    """Write one shard: tensors that a thread can hold go to the pool as they are, larger ones share all its threads."""
    chosen = [plans[entry.name] for entry in shard.entries]
    header, places = shard_header(shard, plans)
    size = len(header) + sum(place.nbytes for place in places)
    with ExitStack() as stack:
        source = stack.enter_context(SourceFile(folder.path / shard.name))
        target = stack.enter_context(TargetFile(workplace.growing(shard.name), size))
        # Last in, first out: no thread reads or writes any more when the files are closed.
        pool = stack.enter_context(ThreadPoolExecutor(budget.threads))
        target.write(header, 0)
        streams = Streams(
            source=source,
            entries=_by_name(shard.entries),
            target=target,
            places=_by_name(places),
            buffers=Buffers(),
            budget=budget,
            advance=advance,
        )
        large = [plan for plan in chosen if is_cut(plan, streams)]
        small = sorted((plan for plan in chosen if not is_cut(plan, streams)), key=lambda plan: -plan.nbytes)
        outcomes = [transform_tensor(plan, streams, pool) for plan in large]
        outcomes += pool.map(lambda plan: transform_tensor(plan, streams, None), small)
    by_name = {outcome.name: outcome for outcome in outcomes}
    return [by_name[plan.name] for plan in chosen]


def _by_name(entries: tuple[Entry, ...] | list[Entry]) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


def _write_small_files(folder: Folder, plan: Plan, report: Report, workplace: Workplace) -> None:
    """Everything beside the shards; the configuration, which makes the folder loadable, comes last."""
    renamed = original_card_name(folder.other_files)
    workplace.copy_in(folder.path, [name for name in folder.other_files if name not in (CARD_NAME, REPORT_NAME)])
    original = None
    if CARD_NAME in folder.other_files:
        original = (folder.path / CARD_NAME).read_text(encoding="utf-8", errors="replace")
        workplace.copy_in(folder.path, [CARD_NAME], renamed)
    if folder.index_name is not None:
        workplace.write_text(folder.index_name, index_text(folder, plan))
    workplace.write_text(REPORT_NAME, report_pieces(report))
    workplace.write_text(CARD_NAME, model_card(report, original, renamed))
    workplace.write_text("config.json", config_text(folder, plan))


def _other_bytes(folder: Folder) -> int:
    return sum((folder.path / name).stat().st_size for name in folder.other_files)


def _fingerprint(folder: Folder, plan: Plan) -> str:
    """Whatever decides the bytes of the shards: the version, the very files, and the plan."""
    digest = hashlib.sha256(f"{__version__} {FORMAT_VERSION}".encode())
    for shard in folder.shards:
        path = (folder.path / shard.name).resolve()
        stat = path.stat()
        # The times of a copy can be set to those of another file, the time of its last change cannot.
        identity = (str(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        digest.update(repr((identity, sorted(shard.metadata.items()))).encode(errors="backslashreplace"))
    for tensor in plan.tensors:
        digest.update(repr(tensor).encode())
    return digest.hexdigest()


def _refuse_quantized(folder: Folder) -> None:
    """Codes must never be taken for weights: a source that says it is quantized, or looks so, is refused with the remedy."""
    configs = [folder.config, *(part for part in folder.config.values() if isinstance(part, Mapping))]
    for config in configs:
        said = config.get("quantization_config") or config.get("compression_config")
        if isinstance(said, Mapping):
            method = said.get("quant_method", "an unknown method")
            raise SourceError(
                f"{folder.path}: is already quantized (config.json: quant_method {method!r}); use the float model it was made from"
                + (", or make a float folder of it with: splitquant dequantize" if method == "splitquant" else "")
            )
    fp8 = {name.rpartition(".")[0] for name, entry in folder.tensors.items() if entry.dtype in ("F8_E4M3", "F8_E5M2")}
    for name, entry in folder.tensors.items():
        module, _, last = name.rpartition(".")
        scaled = "scale" in last and (module in fp8 or module.rpartition(".")[0] in fp8)
        if scaled or name == "scaled_fp8" or entry.dtype == "F8_E8M0" or name.endswith(_MARKS):
            raise SourceError(
                f"{folder.path / folder.shard_of[name]}: tensor {name!r} is the scale or the codes of an already quantized weight, "
                "which are not plain values; use the float model it was made from"
            )
