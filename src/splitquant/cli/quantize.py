"""`splitquant quantize`."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitquant.checkpoint.convert import apply_plan, plan_folder
from splitquant.checkpoint.folder import Folder
from splitquant.checkpoint.planner import Choice, Goal, measure_frontier, read_plan
from splitquant.cli.terminal import CAN_GO_ON, byte_progress, check_json_target, say, write_json
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.core.strategies import Layout, facts_of
from splitquant.errors import SpecError, TensorError
from splitquant.plan.plan import Plan, Recipe
from splitquant.plan.said import spec_as_said
from splitquant.plan.saved import plan_to_dict
from splitquant.plan.targets import spec_for
from splitquant.report.outcome import Report, planned_report
from splitquant.report.summary import size
from splitquant.storage.json_file import read_edited_json
from splitquant.storage.memory import parse_bytes
from splitquant.storage.resources import Resources


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of a spec as typed; None where nothing was said."""

    bits: int | None
    clusters: int | None
    strategy: str | None
    granularity: str | None
    layout: str | None
    symmetric: bool
    target: str | None = None
    polish: bool | None = None

    def said(self) -> dict[str, Any]:
        """What was typed, by the fields of `QuantSpec`."""
        said: dict[str, Any] = {
            name: value
            for name in ("bits", "clusters", "strategy", "granularity", "layout", "polish")
            if (value := getattr(self, name)) is not None
        }
        if self.symmetric:
            said["symmetric"] = True
        return said

    def spec(self, *, paper: bool) -> QuantSpec:
        """The spec that is meant: what was typed, over the preset or the target's best; SpecError where it makes no sense."""
        if self.target is not None:
            if paper:
                raise SpecError("--preset paper decides everything, and --target chooses; leave one of them out")
            return spec_for(self.target, **self.said())
        return spec_as_said(self.said(), **(PAPER.to_dict() if paper else {}))

    def split_spec(self) -> QuantSpec:
        """The spec of a split whose float parts another tool quantizes."""
        if self.target is not None:
            return spec_for(self.target, refit=True, **self.said())
        layout: Layout = (
            "fused" if facts_of(self.strategy).free_levels else "parallel"
        )  # whoever splits says why there are no such parts
        return spec_as_said({"polish": False, **self.said()}, layout=layout)


@dataclass(frozen=True, slots=True)
class Planning:
    """Where the plan comes from, and where it and the frontier go; None where nothing was said."""

    target_bits: float | None = None
    target_size: str | None = None
    weighting: str | None = None
    plan_file: Path | None = None
    save_plan: Path | None = None
    plot: Path | None = None

    @property
    def by_size(self) -> bool:
        """Whether a size was asked for."""
        return self.target_bits is not None or self.target_size is not None

    def check(self, said: list[str]) -> None:
        """Refuse combinations that make no sense; `said` are the options that a plan file leaves no room for."""
        if self.plan_file is not None:
            said = [*said, *(["--target-bits or --target-size"] if self.by_size else [])]
            if said:
                raise SpecError(f"--plan already says what becomes of every tensor; leave out {', '.join(said)}")
        if not self.by_size:
            for option, value in (("--weighting", self.weighting), ("--plot", self.plot)):
                if value is not None:
                    raise SpecError(f"{option} needs --target-bits or --target-size")

    def goal(self, choices: Choices, *, choose_embeddings: bool) -> Goal | None:
        """The size that was asked for (None: none was)."""
        if not self.by_size:
            return None
        weighting = self.weighting or "energy"
        return Goal(
            self.target_bits,
            None if self.target_size is None else parse_bytes(self.target_size),
            weighting if weighting in ("energy", "relative") else read_edited_json(Path(weighting)),
            choices.said(),
            choose_embeddings,
            choices.target,
        )


@dataclass(frozen=True, slots=True)
class _Planned:
    """The plan, and where it was chosen by size what else was possible."""

    folder: Folder
    plan: Plan
    chosen: Choice | None = None
    marks: tuple[Choice, ...] = ()


def run_quantize(
    source: Path,
    output: Path,
    recipe: Recipe,
    planning: Planning,
    goal: Goal | None,
    *,
    max_memory: str,
    threads: int,
    dry_run: bool,
    strict: bool,
    json_file: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Plan, then (unless `dry_run`) apply, with progress; then the table and what to do next."""
    resources = Resources.of(max_memory, threads, force=force)
    targets = [target for target in (json_file, planning.save_plan, planning.plot) if target is not None]
    if len({target.absolute() for target in targets}) < len(targets):
        raise SpecError("two of --json, --save-plan and --plot are the same file; choose another for one of them")
    for target in targets:
        check_json_target(target, source, output)
    if planning.plot is not None:
        from splitquant.cli.frontier import check_picture

        check_picture(planning.plot)
    planned = _planned(
        source, recipe, planning, goal, resources, marks=dry_run or planning.plot is not None, quiet=quiet
    )
    if strict:
        _refuse_kept(planned.plan)
    if planning.save_plan is not None:
        write_json(planning.save_plan, plan_to_dict(planned.plan))
        quiet = quiet or str(planning.save_plan) == "-"
    if planning.plot is not None and planned.chosen is not None:
        from splitquant.cli.frontier import write_picture

        write_picture(planning.plot, planned.marks, planned.chosen)
    if dry_run:
        _show_plan(planned, json_file, quiet=quiet, verbose=verbose)
        return
    plan = planned.plan
    with byte_progress("quantizing", plan.source_bytes, quiet=quiet, after=CAN_GO_ON) as advance:
        report = apply_plan(planned.folder, plan, output, resources, advance)
    _show(report, report.to_dict(), json_file, quiet=quiet, verbose=verbose, planned=False)
    if not quiet:
        _tell(report)


def _planned(
    source: Path,
    recipe: Recipe,
    planning: Planning,
    goal: Goal | None,
    resources: Resources,
    *,
    marks: bool,
    quiet: bool,
) -> _Planned:
    if planning.plan_file is not None:
        return _Planned(*read_plan(source, planning.plan_file))
    if goal is None:
        return _Planned(*plan_folder(source, recipe))
    nbytes = plan_folder(source, recipe)[1].source_bytes
    with byte_progress("measuring", nbytes, quiet=quiet) as advance:
        frontier = measure_frontier(source, recipe, goal, resources, advance)
    chosen = frontier.for_goal(goal)
    if not marks:
        return _Planned(frontier.folder, chosen.plan, chosen)
    from splitquant.cli.frontier import with_chosen

    return _Planned(frontier.folder, chosen.plan, chosen, tuple(with_chosen(frontier.marks(), chosen)))


def _tell(report: Report) -> None:
    """How the run went, where the result is, and what to do next."""
    run = report.run
    assert run is not None
    taken_up = f", {run.resumed_shards} shards taken up from an interrupted run" if run.resumed_shards else ""
    say(
        f"{run.wall_seconds:.2f} s with {run.threads} threads and {run.kernels} kernels, peak memory {size(run.peak_bytes)}{taken_up}"
    )
    if run.kernels == "numpy" and "SPLITQUANT_KERNELS" not in os.environ:
        say("the compiled kernels are not installed; they are some 50 times faster (reinstall with a C++20 compiler)")
    if report.left_out:
        say(f"left out, the same weights in other formats: {', '.join(report.left_out)}")
    source, destination = shlex.quote(run.source), shlex.quote(run.destination)
    say(f"written to {run.destination}; next: splitquant verify {source} {destination}")


def _show_plan(planned: _Planned, json_file: Path | None, *, quiet: bool, verbose: bool) -> None:
    """A plan, and the sizes that were possible instead."""
    report, chosen = planned_report(planned.plan), planned.chosen
    if chosen is None:
        _show(report, report.to_dict(), json_file, quiet=quiet, verbose=verbose, planned=True)
        return
    from splitquant.cli.frontier import frontier_dict, frontier_drawing, frontier_table

    data = {**report.to_dict(), "frontier": frontier_dict(planned.marks, chosen)}
    more = [frontier_table(planned.marks, chosen), frontier_drawing(planned.marks, chosen)]
    _show(report, data, json_file, *more, quiet=quiet, verbose=verbose, planned=True)
    if not quiet:
        say(
            f"at most {chosen.folder_bytes:,} bytes in all files, {chosen.bits_per_weight:.3f} stored bits per weight; "
            "save the plan with --save-plan FILE"
        )


def _show(
    report: Report, data: dict[str, Any], json_file: Path | None, *more: Any, quiet: bool, verbose: bool, planned: bool
) -> None:
    write_json(json_file, data)
    if quiet or str(json_file) == "-":
        return
    from splitquant.cli.tables import show, summary_table, tensor_table

    summary = summary_table(report, planned=planned)
    show(*([tensor_table(report.tensors), summary] if verbose else [summary]), *more)


def _refuse_kept(plan: Plan) -> None:
    kept = [
        tensor for tensor in plan.tensors if tensor.spec is None and tensor.role.kind in ("linear", "conv", "expert")
    ]
    if kept:
        raise TensorError(
            f"--strict: {len(kept)} weights would be kept, the first of them {kept[0].name!r} ({kept[0].reason}); "
            "see all with --dry-run -v"
        )
