"""A folder that is to be quantized: opened, checked to hold plain floats, and planned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from splitquant.checkpoint.folder import Folder, open_folder
from splitquant.checkpoint.roles import layers_of
from splitquant.checkpoint.stored import refuse_clashes
from splitquant.errors import SourceError
from splitquant.plan.decide import decide
from splitquant.plan.layers import Layer
from splitquant.plan.plan import Plan
from splitquant.plan.recipe import Recipe
from splitquant.plan.saved import plan_from_dict
from splitquant.storage.json_file import read_edited_json

_MARKS = (
    "weight_scale_inv",
    "weight_scale",
    "qweight",
    "qzeros",
    ".weight_packed",
    "_blocks",
    ".weight.absmax",
    ".SCB",
)


def open_float_folder(source: Path) -> Folder:
    """Read the headers of a folder that is to be quantized; SourceError for one that is already."""
    return float_folder(open_folder(source))


def float_folder(folder: Folder) -> Folder:
    """A folder that holds the plain floats of a model; SourceError for any other."""
    _refuse_adapter(folder)
    _refuse_quantized(folder)
    return folder


def folder_layers(folder: Folder) -> tuple[Layer, ...]:
    """The layers of a folder, shard by shard."""
    return layers_of((entry for shard in folder.shards for entry in shard.entries), folder.config)


def plan_folder(folder: Folder, recipe: Recipe) -> Plan:
    """What becomes of every tensor of a folder by a recipe."""
    plan = decide(folder_layers(folder), recipe)
    refuse_clashes(plan)
    return plan


def read_plan(folder: Folder, file: Path) -> Plan:
    """The plan for a folder that a file holds; SpecError where the file does not fit."""
    plan = plan_from_dict(read_edited_json(file), folder_layers(folder), str(file))
    refuse_clashes(plan)
    return plan


def _refuse_adapter(folder: Folder) -> None:
    """The matrices of an adapter belong to a base model, and PEFT, which loads them, knows no packed weights."""
    names = [shard.name for shard in folder.shards]
    if "adapter_config.json" in folder.other_files and all(name.startswith("adapter") for name in names):
        raise SourceError(
            f"{folder.path}: is an adapter (adapter_config.json, {names[0]}), not a model; quantize its base model and put the "
            "adapter onto that, or merge the two first, with peft: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
        )


def _refuse_quantized(folder: Folder) -> None:
    """Codes must never be taken for weights: a source that says it is quantized, or looks so, is refused with the remedy."""
    configs = [folder.config, *(part for part in folder.config.values() if isinstance(part, Mapping))]
    for config in configs:
        said = config.get("quantization_config") or config.get("compression_config")
        if isinstance(said, Mapping):
            method = said.get("quant_method", "an unknown method")
            raise SourceError(
                f"{folder.path}: is already quantized (config.json: quant_method {method!r}); use the float model it was made from"
                + (", or make a float folder of it with: splitquant dequantize" if method == "splitquant" else "")
            )
    fp8 = {name.rpartition(".")[0] for name, entry in folder.tensors.items() if entry.dtype in ("F8_E4M3", "F8_E5M2")}
    for name, entry in folder.tensors.items():
        module, _, last = name.rpartition(".")
        scaled = "scale" in last and (module in fp8 or module.rpartition(".")[0] in fp8)
        if scaled or name == "scaled_fp8" or entry.dtype == "F8_E8M0" or name.endswith(_MARKS):
            raise SourceError(
                f"{folder.path / folder.shard_of[name]}: tensor {name!r} is the scale or the codes of an already quantized weight, "
                "which are not plain values; use the float model it was made from"
            )
