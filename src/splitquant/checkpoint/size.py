"""How large a quantized folder becomes, known from its plan before a byte is written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

from splitquant.checkpoint.carry import config_text, index_text, report_pieces
from splitquant.checkpoint.convert import shard_header
from splitquant.checkpoint.folder import Folder
from splitquant.checkpoint.safetensors import build_header
from splitquant.core.error import ErrorFigures
from splitquant.format.dtypes import DTYPES
from splitquant.plan.plan import Plan, TensorPlan
from splitquant.report.card import CARD_NAME, model_card, original_card_name
from splitquant.report.outcome import REPORT_NAME, Report, TensorOutcome, outcome_of

_LONGEST = 2.2250738585072014e-308  # as many letters as a float can take in JSON
_CARD_FIGURE = 16  # letters of an SQNR in the card, at most
_INDEX_LINE = 11  # letters of a line of the index beside the two names


def folder_bytes(folder: Folder, plan: Plan) -> int:
    """The size of all files of the output, exact but for the figures in report and card, which take their longest form."""
    report = Report(tuple(_longest(tensor) for tensor in plan.tensors), left_out=folder.left_out)
    original = None
    if CARD_NAME in folder.other_files:
        original = (folder.path / CARD_NAME).read_text(encoding="utf-8", errors="replace")
    card = model_card(report, original, original_card_name(folder.other_files))
    texts = [*report_pieces(report), card, config_text(folder, plan)]
    if folder.index_name is not None:
        texts.append(index_text(folder, plan))
    carried = (name for name in folder.other_files if name != REPORT_NAME)
    return (
        sum(_shard_bytes(folder, plan))
        + sum((folder.path / name).stat().st_size for name in carried)
        + sum(len(text.encode(errors="backslashreplace")) for text in texts)
        + _CARD_FIGURE * card.count("\n|")
    )


def side_bytes(folder: Folder, tensor: TensorPlan) -> int:
    """About what header, config, index and report say of one tensor: all of its bytes in the folder but its data.

    What tensors share (the specs in the config, rows of the card) is left out, so sums of it compare plans, no more.
    """
    name_bytes = len(json.dumps(tensor.name, ensure_ascii=False).encode(errors="backslashreplace")) - 2
    shard_bytes = 0 if folder.index_name is None else len(folder.shard_of[tensor.name])
    return _side_bytes(replace(tensor, name="n" * name_bytes), shard_bytes)


@lru_cache(1 << 16)
def _side_bytes(tensor: TensorPlan, shard_bytes: int) -> int:
    header = build_header(tensor.stored, {})[0]
    report = json.dumps(_longest(tensor).to_dict(), ensure_ascii=False)
    config = json.dumps(_config_entry(tensor), indent=2) if tensor.spec is not None else ""
    index = sum(len(name) + shard_bytes + _INDEX_LINE for name, _, _ in tensor.stored) if shard_bytes else 0
    return len(header) + len(report) + len(config) + index


def _config_entry(tensor: TensorPlan) -> dict[str, Any]:
    """One tensor as deep in an object as it is in config.json."""
    entry = {"spec": 10, "dtype": DTYPES[tensor.dtype].kind, "axis": tensor.role.axis}
    return {"": {"": {tensor.name: {**entry, "stack": True} if tensor.role.stack else entry}}}


def _shard_bytes(folder: Folder, plan: Plan) -> list[int]:
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    sizes = []
    for shard in folder.shards:
        header, places = shard_header(shard, by_name)
        sizes.append(len(header) + sum(place.nbytes for place in places))
    return sizes


def _longest(tensor: TensorPlan) -> TensorOutcome:
    figures = None if tensor.spec is None else ErrorFigures(tensor.weights, _LONGEST, _LONGEST, _LONGEST)
    return outcome_of(tensor, figures, dict.fromkeys((name for name, _, _ in tensor.stored), "00000000"))
