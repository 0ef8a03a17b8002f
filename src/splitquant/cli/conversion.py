"""What `quantize` and `split` have in common: plan, then (unless it is a dry run) convert, then show."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitquant.api import Job, files_of, is_onnx, result_page, source_bytes
from splitquant.cli.terminal import CAN_GO_ON, byte_progress, check_json_target, check_page_target, say, write_json
from splitquant.errors import SpecError, TensorError
from splitquant.plan.plan import Plan
from splitquant.plan.planner import PricedPlan
from splitquant.plan.saved import plan_to_dict
from splitquant.report.outcome import Report
from splitquant.sizes import shown_bytes
from splitquant.storage.files import write_whole
from splitquant.storage.resources import Resources

Prepare = Callable[[Resources, Callable[[int], None]], Job]


@dataclass(frozen=True, slots=True)
class Conversion:
    """From where to where, with what, and what to say of it."""

    title: str
    source: Path
    output: Path
    max_memory: str
    threads: int
    force: bool
    durable: bool
    dry_run: bool
    json_file: Path | None
    save_plan: Path | None
    plot: Path | None
    report: Path | None
    quiet: bool
    verbose: bool

    def check(self) -> None:
        """Refuse places for results that cannot be, before any work is done."""
        targets = [target for target in (self.json_file, self.save_plan, self.plot, self.report) if target is not None]
        if len({target.absolute() for target in targets}) < len(targets):
            raise SpecError(
                "two of --json, --save-plan, --plot and --report are the same file; choose another for one of them"
            )
        for target in targets:
            check_json_target(target, *files_of(self.source, self.output))
        check_page_target(self.report, "--report")
        if self.report is not None and self.dry_run:
            raise SpecError("--report shows what was made, and --dry-run makes nothing; leave one of them out")
        if self.plot is not None:
            from splitquant.cli.frontier import FRONTIER_PICTURES
            from splitquant.cli.pictures import check_picture

            check_picture(self.plot, FRONTIER_PICTURES)

    def go(self, prepare: Prepare, *, strict: bool = False, by_size: bool = False) -> None:
        """Do it; `by_size`: weights are measured before."""
        resources = Resources.of(self.max_memory, self.threads, force=self.force, durable=self.durable)
        if by_size:
            with byte_progress("measuring", source_bytes(self.source), quiet=self.quiet) as advance:
                job = prepare(resources, advance)
        else:
            job = prepare(resources, lambda _: None)
        with job:
            self._go_on(job, resources, strict=strict)

    def _go_on(self, job: Job, resources: Resources, *, strict: bool) -> None:
        quiet = self.quiet or str(self.save_plan) == "-"
        if strict:
            _refuse_kept(job.plan)
        marks = [] if not self.dry_run and self.plot is None and self.report is None else _marks(job)
        if self.save_plan is not None:
            write_json(self.save_plan, plan_to_dict(job.plan))
        if self.plot is not None and job.chosen is not None:
            from splitquant.cli.frontier import write_picture

            write_picture(self.plot, marks, job.chosen)
        if self.dry_run:
            self._show_plan(job, job.foretold(resources), marks, quiet=quiet)
            return
        after = "nothing was written" if is_onnx(self.source) else CAN_GO_ON
        with byte_progress(self.title, job.plan.source_bytes, quiet=quiet, after=after) as advance:
            report = job.apply(self.output, resources, advance)
        if self.report is not None:
            self._write_page(self.report, report, resources, marks, job.chosen)
        self._show(report, report.to_dict(), quiet=quiet, planned=False)
        if not quiet:
            self._tell(report)

    def _write_page(
        self, target: Path, report: Report, resources: Resources, marks: list[PricedPlan], chosen: PricedPlan | None
    ) -> None:
        """The result as an HTML file."""
        with byte_progress(
            "drawing", source_bytes(self.source), quiet=self.quiet, after=f"{self.output} is complete"
        ) as advance:
            text = result_page(
                self.source, self.output, report, resources, frontier=marks, chosen=chosen, advance=advance
            )
        write_whole(target, text.encode())

    def _show_plan(self, job: Job, report: Report, marks: list[PricedPlan], *, quiet: bool) -> None:
        """A plan, and the sizes that were possible instead."""
        chosen = job.chosen
        if chosen is None:
            self._show(report, report.to_dict(), quiet=quiet, planned=True)
            return
        from splitquant.cli.frontier import frontier_dict, frontier_drawing, frontier_table

        data = {**report.to_dict(), "frontier": frontier_dict(marks, chosen)}
        more = [frontier_table(marks, chosen), frontier_drawing(marks, chosen)]
        self._show(report, data, *more, quiet=quiet, planned=True)
        if not quiet:
            say(
                f"at most {chosen.total_bytes:,} bytes in all files, {chosen.bits_per_weight:.3f} stored bits per weight; "
                "save the plan with --save-plan FILE"
            )

    def _show(self, report: Report, data: dict[str, Any], *more: Any, quiet: bool, planned: bool) -> None:
        write_json(self.json_file, data)
        if quiet or str(self.json_file) == "-":
            return
        from splitquant.cli.tables import show, summary_table, tensor_table

        summary = summary_table(report, planned=planned)
        show(*([tensor_table(report.outcomes), summary] if self.verbose else [summary]), *more)

    def _tell(self, report: Report) -> None:
        """How the run went, where the result is, and what to do next."""
        run = report.run
        if run is not None:
            taken_up = f", {run.resumed_shards} shards taken up from an interrupted run" if run.resumed_shards else ""
            say(
                f"{run.wall_seconds:.2f} s with {run.threads} threads and {run.kernels} kernels, "
                f"peak memory {shown_bytes(run.peak_bytes)}{taken_up}"
            )
            if run.kernels == "numpy" and "SPLITQUANT_KERNELS" not in os.environ:
                say(
                    "the compiled kernels are not installed; they are some 50 times faster (reinstall with a C++20 compiler)"
                )
        for note in report.notes:
            say(f"note: {note}")
        if report.left_out:
            say(f"left out, the same weights in other formats: {', '.join(report.left_out)}")
        source, output = shlex.quote(str(self.source)), shlex.quote(str(self.output))
        say(f"written to {self.output}; next: splitquant verify {source} {output}")
        if not is_onnx(self.source) and not report.notes:  # a note says that it cannot be loaded
            say(f"load it in Python: import splitquant; model = splitquant.load({str(self.output)!r})")


def _marks(job: Job) -> list[PricedPlan]:
    """The frontier of a job with its own plan in it, by size."""
    if job.frontier is None or job.chosen is None:
        return []
    from splitquant.cli.frontier import with_chosen

    return with_chosen(job.frontier.marks(), job.chosen)


_UNKNOWN_SHARE = 0.01
"""Of the weights of a model: class tokens and queries hold less, projections of a layer that is not recognised more."""


def _refuse_kept(plan: Plan) -> None:
    kept = [d for d in plan.decisions if d.spec is None]
    left = [d for d in kept if d.layer.role in ("linear", "conv", "expert")]
    if left:
        raise TensorError(
            f"--strict: {len(left)} weights would be kept, the first of them {left[0].name!r} ({left[0].reason}); "
            "see all with --dry-run -v"
        )
    unknown = [d.layer for d in kept if d.layer.is_of_unknown_use]
    whole = sum(d.layer.weights for d in plan.decisions)
    share = sum(layer.weights for layer in unknown) / max(1, whole)
    if share > _UNKNOWN_SHARE:
        largest = max(unknown, key=lambda layer: layer.weights)
        raise TensorError(
            f"--strict: {share:.0%} of the weights would be kept in {len(unknown)} parameters of unknown use, the largest of them "
            f"{largest.name!r} {list(largest.shape)}; have them quantized with --include, or see all with --dry-run -v"
        )
