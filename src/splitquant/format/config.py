"""The `quantization_config` of config.json as a checked value. Normative text: docs/format.md, section 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from splitquant.core.floats import Kind
from splitquant.core.spec import QuantSpec
from splitquant.errors import SourceError, SpecError
from splitquant.format.weight import Weight

METHOD = "splitquant"
FORMAT_VERSIONS = (1, 2)
"""Those that are read; 2 added own zero_points. A writer takes the least that says all."""
KEY = "quantization_config"
_TOWERS = frozenset({"text_config", "vision_config", "audio_config"})
_KEYS = frozenset({"quant_method", "format_version", "specs", "tensors"})
_ENTRY_KEYS = frozenset({"spec", "dtype", "axis", "stack"})


def parse_table(config: Mapping[str, Any], file: str = "config.json") -> dict[str, Weight]:
    """The quantized tensors that a `quantization_config` names; SourceError, naming `file`, for what is not as it must be.

    Their shapes, which the table does not hold, are () until they are read from the planes called `shape`.
    """
    unknown = sorted(set(config) - _KEYS)
    if unknown:
        raise SourceError(f"{file}: has the unknown key {unknown[0]!r} in quantization_config")
    version = config.get("format_version")
    if type(version) is not int or version not in FORMAT_VERSIONS:
        raise SourceError(
            f"{file}: has format_version {version!r} and this splitquant reads {' and '.join(map(str, FORMAT_VERSIONS))}; "
            "install the version that wrote it"
        )
    try:
        specs = [_parse_spec(item, version) for item in config["specs"]]
        return {name: _parse_entry(file, name, item, specs) for name, item in config["tensors"].items()}
    except (KeyError, TypeError, AttributeError, SpecError) as error:
        raise SourceError(f"{file}: has a damaged quantization_config ({error}); quantize the model again") from error


def _parse_spec(item: Mapping[str, Any], version: int) -> QuantSpec:
    if version == 1 and "zero_points" in item:
        raise SpecError("a spec of format_version 1 has the key 'zero_points', which came with version 2")
    return QuantSpec.from_stored(item)


def _parse_entry(file: str, name: str, item: Mapping[str, Any], specs: list[QuantSpec]) -> Weight:
    spec, kind, axis, stack = item["spec"], item["dtype"], item["axis"], item.get("stack", False)
    where = f"{file}: tensor {name!r} in quantization_config"
    unknown = sorted(set(item) - _ENTRY_KEYS)
    if unknown:
        raise SourceError(f"{where} has the unknown key {unknown[0]!r}; expected {', '.join(sorted(_ENTRY_KEYS))}")
    if type(spec) is not int or not 0 <= spec < len(specs):
        raise SourceError(f"{where} has spec {spec!r}; expected 0 to {len(specs) - 1}: quantize the model again")
    if kind not in get_args(Kind):
        raise SourceError(
            f"{where} has dtype {kind!r}; expected one of {', '.join(get_args(Kind))}: quantize the model again"
        )
    if type(axis) is not int or not isinstance(stack, bool) or axis < int(stack):
        raise SourceError(
            f"{where} has axis {axis!r} and stack {stack!r}; expected an axis of the tensor: quantize the model again"
        )
    return Weight((), axis, specs[spec], kind, stack)


def table_to_dict(tensors: Mapping[str, Weight]) -> dict[str, Any]:
    """The inverse of `parse_table`, in the least version that says all; specs are listed in the order in which they first occur."""
    specs: list[QuantSpec] = []
    items: dict[str, dict[str, Any]] = {}
    for name, entry in sorted(tensors.items()):
        if entry.spec not in specs:
            specs.append(entry.spec)
        items[name] = {"spec": specs.index(entry.spec), "dtype": entry.kind, "axis": entry.axis}
        if entry.stack:
            items[name]["stack"] = True
    version = 2 if any(spec.own_zero_points for spec in specs) else 1
    return {
        "quant_method": METHOD,
        "format_version": version,
        "specs": [spec.to_stored() for spec in specs],
        "tensors": items,
    }


def with_config(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with a `quantization_config`, in the configurations nested in it too: a tower is loaded by its own.

    Nested configurations are those that name their model_type, or are called as a tower's.
    """
    nested = {
        key: with_config(value, quantization)
        for key, value in config.items()
        if isinstance(value, Mapping) and (_names_a_model(value) or key in _TOWERS)
    }
    return {**config, **nested, KEY: quantization}


def without_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `with_config`: a config.json without any `quantization_config`, nested ones included."""
    return {
        key: without_config(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key != KEY
    }


def _names_a_model(config: Mapping[str, Any]) -> bool:
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type != ""
