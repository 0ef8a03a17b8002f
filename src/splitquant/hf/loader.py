"""`load`: a quantized folder as a transformers model that works."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from splitquant.errors import MissingExtraError, SourceError
from splitquant.format.config import METHOD, parse_table
from splitquant.hf.register import failure_text, install, registration_failure


def load(directory: str | Path, *, tokenizer: bool = False, model_class: Any = None, **kwargs: Any) -> Any:
    """Load a folder that splitquant wrote; with `tokenizer`, the pair (model, tokenizer).

    model_class: a transformers class, "AutoModel..." ones included; by default the one that config.json names.
    kwargs go to its `from_pretrained` (dtype, device_map, ...); weights stay packed in memory.
    Raises SourceError for a folder that is missing, damaged or not quantized, MissingExtraError without transformers.
    """
    path = Path(directory)
    architectures = _check_folder(path)
    for need in ("torch", "transformers", "safetensors"):
        if find_spec(need) is None:
            raise MissingExtraError(need, "hf")
    import transformers  # noqa: PLC0415 - an extra, asked for by calling this

    install()
    import transformers.quantizers.auto  # noqa: PLC0415 - the registration happens here

    failure = registration_failure()
    if failure is not None:
        raise ImportError(failure_text(failure)) from failure
    if model_class is None:
        model_class = _class_for(architectures)
    elif isinstance(model_class, str):
        model_class = getattr(transformers, model_class)
    model = model_class.from_pretrained(path, **kwargs)
    return (model, transformers.AutoTokenizer.from_pretrained(path)) if tokenizer else model


def _check_folder(path: Path) -> list[str]:
    """The architectures that config.json names, after a look that it is a folder of ours."""
    file = path / "config.json"
    if not path.is_dir():
        raise SourceError(f"{path}: no such folder")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        quantization = config.get("quantization_config") or {}
        method = quantization.get("quant_method")
    except (OSError, ValueError, AttributeError) as error:
        raise SourceError(f"{file}: cannot be read ({error}); expected a folder that splitquant wrote") from error
    if method != METHOD:
        raise SourceError(
            f"{file}: is no splitquant folder (quant_method is {method!r}); make one with: splitquant quantize, "
            "or load this one with transformers"
        )
    parse_table(quantization)
    return list(config.get("architectures") or ())


def _class_for(architectures: list[str]) -> Any:
    import transformers  # noqa: PLC0415

    for name in architectures:
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    if any("CausalLM" in name for name in architectures):
        return transformers.AutoModelForCausalLM  # a class of remote code, found by its auto_map
    return transformers.AutoModel
