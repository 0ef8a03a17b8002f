"""The small JSON files of a quantized folder: configuration, index, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from splitquant.checkpoint.folder import Folder
from splitquant.format.config import table_to_dict
from splitquant.plan.plan import Plan
from splitquant.report.outcome import Report


def quantization_config(plan: Plan) -> dict[str, Any]:
    """The `quantization_config` of a plan; normative text: docs/format.md, section 2."""
    return table_to_dict({tensor.name: tensor.weight(tensor.spec) for tensor in plan.quantized if tensor.spec})


def config_text(folder: Folder, plan: Plan) -> str:
    """config.json of the output: the source's, with `quantization_config`."""
    return _json({**folder.config, "quantization_config": quantization_config(plan)})


def index_text(folder: Folder, plan: Plan) -> str:
    """The safetensors index of the output: the same shards, with the stored tensors in them."""
    home = folder.shard_of
    weight_map = {name: home[tensor.name] for tensor in plan.tensors for name, _, _ in tensor.stored}
    metadata = {**folder.index_metadata, "total_size": plan.stored_bytes}
    return _json({"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def report_pieces(report: Report) -> Iterator[str]:
    """The report file of the output, piece by piece, a line per tensor; holds nothing of how the run went."""
    head = replace(report, run=None, tensors=()).to_dict()
    yield json.dumps({key: value for key, value in head.items() if key != "tensors"}, indent=2)[:-2]
    yield ',\n  "tensors": ['
    for number, tensor in enumerate(report.tensors):
        yield ("," if number else "") + "\n    " + json.dumps(tensor.to_dict(), ensure_ascii=False)
    yield "\n  ]\n}\n"


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
