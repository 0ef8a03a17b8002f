"""How large a quantized folder becomes, known from its plan before a byte is written."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from splitquant.checkpoint.folder import Folder
from splitquant.checkpoint.safetensors import build_header
from splitquant.checkpoint.sidecar import config_text, index_text, original_card, report_pieces
from splitquant.checkpoint.stored import shard_header, stored_names, stored_tensors
from splitquant.core.error import ErrorFigures
from splitquant.core.spec import QuantSpec
from splitquant.format.dtypes import DTYPES
from splitquant.plan.decide import plane_bytes
from splitquant.plan.layers import Layer
from splitquant.plan.plan import Decision, Plan
from splitquant.report.card import model_card, original_card_name
from splitquant.report.outcome import REPORT_NAME, Outcome, Report, outcome_of

_LONGEST = 2.2250738585072014e-308  # as many letters as a float can take in JSON
_CARD_FIGURE = 16  # letters of an SQNR in the card, at most
_INDEX_LINE = 11  # letters of a line of the index beside the two names


@dataclass(frozen=True, slots=True)
class FolderCosts:
    """The sizes that a planner asks for, see `plan.planner.Costs`."""

    folder: Folder

    def price(self, layer: Layer, spec: QuantSpec) -> int:
        """The bytes of the planes of a tensor."""
        return plane_bytes(layer, spec)

    def beside(self, decision: Decision) -> int:
        """About what header, config, index and report say of one tensor: all of its bytes in the folder but its data.

        What tensors share (the specs in the config, rows of the card) is left out.
        """
        name_bytes = len(json.dumps(decision.name, ensure_ascii=False).encode(errors="backslashreplace")) - 2
        shard_bytes = 0 if self.folder.index_name is None else len(self.folder.shard_of[decision.name])
        layer = replace(decision.layer, name="n" * name_bytes)
        return _words_of(replace(decision, layer=layer), shard_bytes)

    def total(self, plan: Plan) -> int:
        """The size of all files of the output, exact but for the figures in report and card, which take their longest form."""
        folder = self.folder
        report = Report(tuple(_longest(decision) for decision in plan.decisions), left_out=folder.left_out)
        card = model_card(report, original_card(folder), original_card_name(folder.other_files))
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


@lru_cache(1 << 16)
def _words_of(decision: Decision, shard_bytes: int) -> int:
    header = build_header(stored_tensors(decision), {})[0]
    report = json.dumps(_longest(decision).to_dict(), ensure_ascii=False)
    config = json.dumps(_config_entry(decision.layer), indent=2) if decision.spec is not None else ""
    index = sum(len(name) + shard_bytes + _INDEX_LINE for name in stored_names(decision)) if shard_bytes else 0
    return len(header) + len(report) + len(config) + index


def _config_entry(layer: Layer) -> dict[str, Any]:
    """One tensor as deep in an object as it is in config.json."""
    entry = {"spec": 10, "dtype": DTYPES[layer.dtype].kind, "axis": layer.axis}
    return {"": {"": {layer.name: {**entry, "stack": True} if layer.stack else entry}}}


def _shard_bytes(folder: Folder, plan: Plan) -> list[int]:
    by_name = {decision.name: decision for decision in plan.decisions}
    sizes = []
    for shard in folder.shards:
        header, places = shard_header(shard, by_name)
        sizes.append(len(header) + sum(place.nbytes for place in places))
    return sizes


def _longest(decision: Decision) -> Outcome:
    figures = None if decision.spec is None else ErrorFigures(decision.layer.weights, _LONGEST, _LONGEST, _LONGEST)
    return outcome_of(decision, figures, dict.fromkeys(stored_names(decision), "00000000"))
