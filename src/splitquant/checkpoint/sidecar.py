"""The small files beside the shards of a quantized folder: configuration, index, report, card, and what is carried over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from splitquant.checkpoint.folder import Folder
from splitquant.checkpoint.stored import stored_names
from splitquant.format.config import table_to_dict, with_config
from splitquant.plan.plan import Plan
from splitquant.report.card import CARD_NAME, model_card, original_card_name
from splitquant.report.outcome import REPORT_NAME, Report
from splitquant.storage.files import read_start
from splitquant.storage.memory import MIB
from splitquant.storage.workplace import Workplace

_LONGEST_CARD = 4 * MIB


def small_files_bytes(tensors: int) -> int:
    """The room for what is written beside so many tensors, generously: about 700 bytes each in the report, 300 elsewhere."""
    return MIB + 4096 * tensors


def write_small_files(folder: Folder, plan: Plan, report: Report, workplace: Workplace) -> None:
    """Write everything beside the shards; the configuration, which makes the folder loadable, comes last."""
    renamed = original_card_name(folder.other_files)
    workplace.copy_in(folder.path, [name for name in folder.other_files if name not in (CARD_NAME, REPORT_NAME)])
    original = original_card(folder)
    if original is not None:
        workplace.copy_in(folder.path, [CARD_NAME], renamed)
    if folder.index_name is not None:
        workplace.write_text(folder.index_name, index_text(folder, plan))
    workplace.write_text(REPORT_NAME, report_pieces(report))
    workplace.write_text(CARD_NAME, model_card(report, original, renamed))
    workplace.write_text("config.json", config_text(folder, plan))


def original_card(folder: Folder) -> str | None:
    """The text of the source's own card, where it has one; its beginning, where it is endless."""
    if CARD_NAME not in folder.other_files:
        return None
    return read_start(folder.path / CARD_NAME, _LONGEST_CARD).decode(errors="replace").replace("\r\n", "\n")


def quantization_config(plan: Plan) -> dict[str, Any]:
    """The `quantization_config` of a plan; normative text: docs/format.md, section 2."""
    return table_to_dict({d.name: d.layer.weight(d.spec) for d in plan.quantized if d.spec is not None})


def notes_on(folder: Folder) -> tuple[str, ...]:
    """What a user must know of the output of a folder: that no library can say which model it is, where that is so."""
    if folder.config.get("model_type") or folder.config.get("auto_map"):
        return ()
    found = "has a config.json that names no model_type" if folder.config else "has no config.json"
    note = (
        f"the source {found}, so transformers cannot load the output; give the source the config.json of its model and "
    )
    return (note + "quantize it again, or read the output with splitquant dequantize",)


def config_text(folder: Folder, plan: Plan) -> str:
    """config.json of the output: the source's, with `quantization_config`, in nested configurations too."""
    return _json(with_config(folder.config, quantization_config(plan)))


def index_text(folder: Folder, plan: Plan) -> str:
    """The safetensors index of the output: the same shards, with the stored tensors in them."""
    home = folder.shard_of
    weight_map = {name: home[decision.name] for decision in plan.decisions for name in stored_names(decision)}
    metadata = {**folder.index_metadata, "total_size": plan.stored_bytes}
    return _json({"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def report_pieces(report: Report) -> Iterator[str]:
    """The report file of the output, piece by piece, a line per tensor; holds nothing of how the run went."""
    head = replace(report, run=None, outcomes=()).to_dict()
    yield json.dumps({key: value for key, value in head.items() if key != "tensors"}, indent=2)[:-2]
    yield ',\n  "tensors": ['
    for number, outcome in enumerate(report.outcomes):
        yield ("," if number else "") + "\n    " + json.dumps(outcome.to_dict(), ensure_ascii=False)
    yield "\n  ]\n}\n"


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
