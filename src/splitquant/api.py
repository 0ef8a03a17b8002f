"""The main job as Python functions: the names that `import splitquant` offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypedDict, Unpack

from splitquant.checkpoint.distributions import distributions, kept_distribution, quantized_distribution
from splitquant.checkpoint.folder import open_folder
from splitquant.checkpoint.job import prepare_folder
from splitquant.checkpoint.quantized import is_quantized, open_quantized, with_table
from splitquant.checkpoint.restore import dequantize_folder
from splitquant.checkpoint.source import float_folder, plan_folder
from splitquant.checkpoint.verify import Verified, verify_folder, with_figures
from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError, TensorError
from splitquant.format.dtypes import DTYPES
from splitquant.plan.options import PlanOptions
from splitquant.plan.plan import Plan
from splitquant.plan.planner import Frontier, PricedPlan
from splitquant.plan.recipe import Recipe
from splitquant.report.distribution import Distribution
from splitquant.report.html.content import Content
from splitquant.report.html.page import page
from splitquant.report.outcome import Report, planned_report
from splitquant.storage.json_file import read_edited_json
from splitquant.storage.memory import DEFAULT_MAX_MEMORY
from splitquant.storage.resources import Resources

AnyPath = str | Path
Advance = Callable[[int], None]


class QuantizeOptions(TypedDict, total=False):
    """The options of `quantize` and `dry_run`: those of `PlanOptions`, and of .onnx files how weights are stored.

    `weighting` may be the path of a JSON file of numbers, and `plan` is that of a plan that was saved. The last four are of
    .onnx files, see `splitquant.onnx.OnnxForm`.
    """

    fixed: Mapping[str, Any]
    preset: str
    embeddings: QuantSpec | int | str | None
    include: Sequence[str] | str
    exclude: Sequence[str] | str
    target: str | None
    target_bits: float | None
    target_size: int | str | None
    weighting: str | Mapping[str, float]
    plan: AnyPath | None
    format: str
    block_size: int | None
    accuracy_level: int | None
    activations: str | None


_OF_ONNX = ("format", "block_size", "accuracy_level", "activations")


class Job(Protocol):
    """A source that is planned and ready to be quantized."""

    @property
    def plan(self) -> Plan:
        """What becomes of every layer."""
        ...

    @property
    def frontier(self) -> Frontier | None:
        """Where the plan was chosen by size: everything that was possible."""
        ...

    @property
    def chosen(self) -> PricedPlan | None:
        """Where the plan was chosen by size: the plan with its figures."""
        ...

    def foretold(self, resources: Resources) -> Report:
        """The report of `apply` as far as it is known before: without figures and checksums."""
        ...

    def apply(self, destination: Path, resources: Resources, advance: Advance = ...) -> Report:
        """Write the result."""
        ...

    def __enter__(self) -> Self:
        """A job may hold the files of its source."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        ...


def quantize(  # noqa: PLR0913 - the options of a public function
    source: AnyPath,
    destination: AnyPath,
    spec: QuantSpec | None = None,
    *,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    force: bool = False,
    durable: bool = True,
    advance: Advance = lambda _: None,
    **options: Unpack[QuantizeOptions],
) -> Report:
    """Quantize a Hugging Face folder into another one, or an .onnx file into another; prints nothing.

    Args:
        source: the float model.
        destination: what to write; it appears complete or not at all.
        spec: for linear, convolution and expert weights; None: what is best, with the fields of `fixed`.
        max_memory: bound on the peak memory of the process, bytes or text such as "1GiB".
        threads: 0 takes all processors.
        force: whether what is at the destination may be replaced.
        durable: whether all bytes are on the disk before the output gets its name, so that no power cut damages it.
        advance: told the number of source bytes that are done, from any thread.
        **options: `fixed` (fields of `QuantSpec` that are decided), `preset`, `embeddings`, `include`, `exclude`, `target`,
            `target_bits`, `target_size`, `weighting`, `plan`; of .onnx files also `format`, `block_size`,
            `accuracy_level`, `activations`. See `QuantizeOptions`.

    Returns:
        What became of every tensor, with its error.

    Raises:
        SpecError, SourceError, TensorError, DestinationError: see `splitquant.errors`; on an error nothing is left.
    """
    resources = Resources.of(max_memory, threads, force=force, durable=durable)
    with prepare(source, spec, resources, **options) as job:
        return job.apply(Path(destination), resources, advance)


def dry_run(
    source: AnyPath,
    spec: QuantSpec | None = None,
    *,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    **options: Unpack[QuantizeOptions],
) -> Plan:
    """What `quantize` would do with every tensor, and why; reads no weights unless a size is given."""
    with prepare(source, spec, Resources.of(max_memory, threads), **options) as job:
        return job.plan


def prepare(
    source: AnyPath,
    spec: QuantSpec | None,
    resources: Resources,
    advance: Advance = lambda _: None,
    **options: Unpack[QuantizeOptions],
) -> Job:
    """Open a source and plan it: the first half of `quantize`.

    Args:
        source: a folder or an .onnx file.
        spec: as in `quantize`.
        resources: what may be used; measuring for a size takes them too.
        advance: told source bytes that are measured or passed over, from any thread.
        **options: as in `quantize`.

    Raises:
        SpecError, SourceError, TensorError: see `splitquant.errors`.
    """
    of_onnx = {name: options[name] for name in _OF_ONNX if options.get(name) is not None}  # type: ignore[literal-required]
    asked = {name: value for name, value in options.items() if name not in _OF_ONNX}
    plan_file, weighting = asked.pop("plan", None), asked.get("weighting", "energy")
    if isinstance(weighting, str) and weighting not in ("energy", "relative"):
        asked["weighting"] = read_edited_json(Path(weighting))
    planned = PlanOptions(spec=spec, plan_file=None if plan_file is None else Path(plan_file), **asked)  # type: ignore[arg-type]
    if is_onnx(source):
        from splitquant.onnx.job import prepare_model  # noqa: PLC0415 - an extra, asked for by the name of the source

        return prepare_model(Path(source), planned, resources, advance, **of_onnx)
    if of_onnx:
        raise SpecError(f"{source}: is no .onnx file; leave out {', '.join(of_onnx)}")
    return prepare_folder(Path(source), planned, resources, advance)


def verify(
    source: AnyPath,
    destination: AnyPath,
    *,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    advance: Advance = lambda _: None,
) -> Verified:
    """Hold a quantized folder against its source; VerifyError names the first tensor that is off.

    Args:
        source: the float folder.
        destination: what `quantize` made of it.
        max_memory: as in `quantize`.
        advance: told the number of source bytes that are done.
    """
    return verify_folder(open_folder(Path(source)), Path(destination), Resources.of(max_memory, 1).budget(), advance)


def html_report(
    source: AnyPath,
    destination: AnyPath,
    *,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    advance: Advance = lambda _: None,
) -> str:
    """A quantized folder beside its source as one HTML page that needs nothing else; reads both once, in windows.

    Args:
        source: the float folder.
        destination: what `quantize` made of it.
        max_memory: as in `quantize`.
        threads: as in `quantize`.
        advance: told the number of source bytes that are done, from any thread.

    Raises:
        SourceError, VerifyError: where one of the folders cannot be read, or they are not of the same model.
    """
    resources = Resources.of(max_memory, threads)
    return result_page(source, destination, None, resources, advance=advance)


def result_page(  # noqa: PLR0913 - the parts of a page
    source: AnyPath,
    destination: AnyPath,
    report: Report | None,
    resources: Resources,
    *,
    frontier: Sequence[PricedPlan] = (),
    chosen: PricedPlan | None = None,
    advance: Advance = lambda _: None,
) -> str:
    """A result as an HTML page, see `html_report`; of an .onnx file without pictures of the values.

    Args:
        source: the float model.
        destination: what was made of it.
        report: what became of every tensor; None: as a folder itself tells.
        resources: what may be used.
        frontier: plans of other sizes, by size, where the result was chosen by size (`plan.planner.Frontier.marks`).
        chosen: the plan among them that was taken.
        advance: as in `html_report`.

    Raises:
        SourceError, VerifyError: as `html_report`.
    """
    names = _called(source), _called(destination)
    if report is not None and is_onnx(source):
        return page(Content(*names, report, frontier=frontier, chosen=chosen))
    folder, quantized = open_folder(Path(source)), open_quantized(Path(destination))
    budget = resources.budget(len(folder.tensors))
    seen = dict(distributions(folder, quantized, budget, advance))
    known = with_figures(folder, quantized, report or quantized.known_report(), budget)
    return page(Content(*names, known, seen, frontier, chosen))


def _called(path: AnyPath) -> str:
    """What a model is called: its folder or file, wherever that lies, so that the same models give the same page."""
    return Path(path).resolve().name or str(path)


def dequantize(  # noqa: PLR0913 - the options of a public function
    source: AnyPath,
    destination: AnyPath,
    *,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    force: bool = False,
    durable: bool = True,
    advance: Advance = lambda _: None,
) -> int:
    """Write the plain float folder that a quantized one stands for; returns the bytes of its tensors.

    Args:
        source: a quantized folder.
        destination: what to write; it appears complete or not at all.
        max_memory: as in `quantize`.
        force: as in `quantize`.
        durable: as in `quantize`.
        advance: told the number of float bytes that are done.
    """
    resources = Resources.of(max_memory, force=force, durable=durable)
    return dequantize_folder(open_quantized(Path(source)), Path(destination), resources, advance)


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a folder holds: outcomes of a quantized one, or what the rules would make of a float one."""

    report: Report
    quantized: bool


def inspect(folder: AnyPath) -> Inspected:
    """What a folder holds, from its headers and its report; SourceError for one that another tool quantized."""
    opened = open_folder(Path(folder))
    if is_quantized(opened):
        return Inspected(with_table(opened).known_report(), quantized=True)
    return Inspected(planned_report(plan_folder(float_folder(opened), Recipe())), quantized=False)


def distribution(
    folder: AnyPath, name: str, source: AnyPath | None = None, *, max_memory: int | str = DEFAULT_MAX_MEMORY
) -> Distribution:
    """How the values of one tensor are distributed, with its levels and borders where it is quantized.

    Args:
        folder: a float folder, or a quantized one.
        name: of the tensor.
        source: of a quantized folder: the float one, for its values and the errors; None: the stored values are taken.
        max_memory: as in `quantize`.

    Raises:
        SpecError: where there is no such tensor. TensorError: where it holds no floats. SourceError, VerifyError: as `html_report`.
    """
    opened = open_folder(Path(folder))
    quantized = with_table(opened) if is_quantized(opened) else None
    if source is not None and quantized is None:
        raise SpecError(f"{folder}: is a float folder itself; leave out the source")
    known = opened.tensors if quantized is None else {**quantized.kept, **quantized.tensors}
    if name not in known:
        near = get_close_matches(name, known, 1, 0)
        raise SpecError(f"{folder}: holds no tensor {name!r}" + f"; did you mean {near[0]!r}?" * bool(near))
    if quantized is not None and name in quantized.tensors:
        budget = Resources.of(max_memory, 1).budget(len(known))
        return quantized_distribution(None if source is None else open_folder(Path(source)), quantized, name, budget)
    dtype = opened.tensors[name].dtype
    if DTYPES[dtype].kind is None:
        raise TensorError(f"{folder}: tensor {name!r} is {dtype}; only floats can be drawn: name another one")
    return kept_distribution(opened, name)


def is_onnx(source: AnyPath) -> bool:
    """Whether a source is an ONNX file, by its name; anything else is a folder."""
    return Path(source).suffix.lower() == ".onnx"


def files_of(source: AnyPath, destination: AnyPath | None = None) -> list[Path]:
    """The files that a source consists of (a folder itself too), and those that its result would."""
    path = Path(source)
    if not is_onnx(path):
        return [path, *path.glob("*.safetensors"), *([] if destination is None else [Path(destination)])]
    from splitquant.onnx.wire.destination import data_path_of  # noqa: PLC0415 - as above
    from splitquant.onnx.wire.source import data_files_of  # noqa: PLC0415

    made = [] if destination is None else [Path(destination), data_path_of(Path(destination))]
    return [path, *data_files_of(path), *made]


def source_bytes(source: AnyPath) -> int:
    """About the bytes of weights of a source: of its files, for a bar of progress."""
    return sum(path.stat().st_size for path in files_of(source) if path.is_file())
