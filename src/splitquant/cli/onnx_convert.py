"""`splitquant split model.onnx` and `splitquant quantize model.onnx`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splitquant.cli.onnx_tables import show_report
from splitquant.cli.terminal import byte_progress, check_json_target
from splitquant.onnx.convert import convert
from splitquant.onnx.options import Options
from splitquant.onnx.source import data_files_of
from splitquant.onnx.target import data_path_of
from splitquant.storage.resources import Resources


@dataclass(frozen=True, slots=True)
class OnnxJob:
    """What to convert, how, and what to say of it."""

    source: Path
    output: Path
    options: Options
    max_memory: str = "1GiB"
    threads: int = 0
    json_file: Path | None = None
    force: bool = False
    quiet: bool = False
    verbose: bool = False


def run_onnx_convert(job: OnnxJob) -> None:
    """Convert with progress, then the table."""
    check_json_target(job.json_file, job.source, job.output, data_path_of(job.output))
    data = data_files_of(job.source)
    check_json_target(job.json_file, *data)
    resources = Resources.of(job.max_memory, job.threads, force=job.force)
    title = "splitting" if job.options.format == "float" else "quantizing"
    total = sum(path.stat().st_size for path in (job.source, *data))
    with byte_progress(title, total, quiet=job.quiet) as advance:
        done = convert(job.source, job.output, job.options, resources, advance)
    show_report(done.report, job.output, job.json_file, quiet=job.quiet, verbose=job.verbose)
