"""`splitquant inspect`."""

from __future__ import annotations

from pathlib import Path

from splitquant.checkpoint.convert import plan_folder
from splitquant.checkpoint.folder import open_folder
from splitquant.checkpoint.quantized import open_quantized
from splitquant.cli.tables import show, summary_table, tensor_table
from splitquant.cli.terminal import say, write_json
from splitquant.plan.plan import Recipe
from splitquant.report.outcome import REPORT_NAME, planned_report


def run_inspect(path: Path, json_file: Path | None) -> None:
    """The tensors of a quantized folder by its report, or what the rules would make of a float folder."""
    config = open_folder(path).config.get("quantization_config")
    quantized = isinstance(config, dict) and config.get("quant_method") == "splitquant"
    if quantized:
        folder = open_quantized(path)
        report = folder.report() if (path / REPORT_NAME).exists() else folder.outline()
    else:
        report = planned_report(plan_folder(path, Recipe())[1])
    write_json(json_file, report.to_dict())
    if str(json_file) == "-":
        return
    if not quantized:
        say("a float folder; this is what 'splitquant quantize' would do with it:")
    show(tensor_table(report.tensors), summary_table(report, planned=not quantized))
