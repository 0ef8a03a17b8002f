"""`splitquant quantize`."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splitquant.checkpoint.convert import Resources, plan_folder, quantize_folder
from splitquant.checkpoint.windows import parse_bytes
from splitquant.cli.terminal import CAN_GO_ON, byte_progress, check_json_target, say, write_json
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.errors import TensorError
from splitquant.plan.plan import Plan, Recipe
from splitquant.report.outcome import Report, planned_report
from splitquant.report.summary import size


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of a spec as typed; None where nothing was said."""

    bits: int | None
    clusters: int | None
    strategy: str | None
    granularity: str | None
    layout: str | None
    symmetric: bool

    def spec(self, *, paper: bool) -> QuantSpec:
        """The spec that is meant: what was typed, over the preset; SpecError where it makes no sense."""
        said: dict[str, Any] = {
            name: value
            for name in ("bits", "clusters", "strategy", "granularity", "layout")
            if (value := getattr(self, name)) is not None
        }
        if self.symmetric:
            said["symmetric"] = True
        return replace(PAPER, **said) if paper else QuantSpec(**said)


def run_quantize(
    source: Path,
    output: Path,
    recipe: Recipe,
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
    resources = Resources(parse_bytes(max_memory), threads, force)
    check_json_target(json_file, source, output)
    _, plan = plan_folder(source, recipe)
    if strict:
        _refuse_kept(plan)
    if dry_run:
        _show(planned_report(plan), json_file, quiet=quiet, verbose=verbose, planned=True)
        return
    with byte_progress("quantizing", plan.source_bytes, quiet=quiet, after=CAN_GO_ON) as advance:
        report = quantize_folder(source, output, recipe, resources, advance)
    _show(report, json_file, quiet=quiet, verbose=verbose, planned=False)
    if not quiet:
        _tell(report)


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


def _show(report: Report, json_file: Path | None, *, quiet: bool, verbose: bool, planned: bool) -> None:
    write_json(json_file, report.to_dict())
    if quiet or str(json_file) == "-":
        return
    from splitquant.cli.tables import show, summary_table, tensor_table

    summary = summary_table(report, planned=planned)
    show(*([tensor_table(report.tensors), summary] if verbose else [summary]))


def _refuse_kept(plan: Plan) -> None:
    kept = [
        tensor for tensor in plan.tensors if tensor.spec is None and tensor.role.kind in ("linear", "conv", "expert")
    ]
    if kept:
        raise TensorError(
            f"--strict: {len(kept)} weights would be kept, the first of them {kept[0].name!r} ({kept[0].reason}); "
            "see all with --dry-run -v"
        )
