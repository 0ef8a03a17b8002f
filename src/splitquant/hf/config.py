"""`SplitQuantConfig`: what `from_pretrained(..., quantization_config=...)` is given, and what config.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from splitquant.core.spec import QuantSpec, ZeroPoints
from splitquant.core.strategies import Layout, Strategy
from splitquant.errors import SpecError
from splitquant.format.config import METHOD, parse_table, table_to_dict
from splitquant.format.weight import Weight
from splitquant.plan.recipe import Recipe, embedding_spec


class SplitQuantConfig(QuantizationConfigMixin):  # type: ignore[misc] # transformers is not typed
    """Options for quantizing a float model while it is loaded.

    bits, clusters, strategy, granularity, symmetric, layout, polish, zero_points: as in `QuantSpec`, for linear and convolution
        weights.
    embeddings: for token embeddings and output heads: a number of bits (plain, symmetric, a scale per row), a `QuantSpec`,
        or "keep".
    modules_to_not_convert: names of modules, or their last parts, that stay float ("lm_head", "model.layers.0.mlp").
    include, exclude: glob patterns of tensor names, as in `splitquant.plan.recipe.Recipe`.

    As JSON it is the table of quantized tensors (docs/format.md, section 2), filled in when a model was loaded.
    Raises SpecError for an option that is out of range.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - options by name, as transformers' own configurations have them
        self,
        bits: int = 4,
        clusters: int = 0,
        strategy: Strategy = "min_error",
        granularity: str = "channel",
        symmetric: bool = False,
        layout: Layout = "fused",
        polish: bool | None = None,
        embeddings: int | str | QuantSpec | None = 8,
        modules_to_not_convert: Sequence[str] | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        zero_points: ZeroPoints | None = None,
    ) -> None:
        self.quant_method = METHOD
        self.recipe = Recipe(
            spec=QuantSpec(bits, clusters, strategy, granularity, symmetric, layout, polish, zero_points),
            embeddings=embedding_spec(embeddings),
            include=tuple(include),
            exclude=tuple(exclude),
        )
        self.modules_to_not_convert = list(modules_to_not_convert or ())
        self.tensors: dict[str, Weight] = {}

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Read the table of a quantized folder, or, where there is none, the options; SourceError, SpecError."""
        if "tensors" in config_dict or "format_version" in config_dict:
            config = cls()
            config.tensors = parse_table(config_dict)
        else:
            try:
                config = cls(**{key: value for key, value in config_dict.items() if key != "quant_method"})
            except TypeError as error:
                raise SpecError(f"SplitQuantConfig: {error}") from error
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, docs/format.md, section 2."""
        return table_to_dict(self.tensors)
