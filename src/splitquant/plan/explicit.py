"""A spec from the fields that somebody wrote down, such that all of them hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError


def explicit_spec(explicit: Mapping[str, Any], **usual: Any) -> QuantSpec:
    """The spec with the explicit fields, over the usual ones, over the defaults.

    Exists because some strategies decide a field themselves, and `QuantSpec` then takes their word.

    Raises:
        SpecError: where a strategy decides otherwise than is explicit, and what `QuantSpec` raises.
    """
    spec = QuantSpec.from_dict({**usual, **explicit})
    for name, value in explicit.items():
        decided = getattr(spec, name)
        if not holds(spec, name, (value,)):
            if name == "zero_points":
                raise SpecError(f"zero_points is {value}, and those of {spec} are {decided}; leave one of them out")
            raise SpecError(
                f"{name} is {_shown(value)}, and the strategy {spec.strategy} is always {name} {_shown(decided)}; leave one of them out"
            )
    return spec


def holds(spec: QuantSpec, name: str, values: tuple[Any, ...]) -> bool:
    """Whether a field of a spec has one of these values; None, and 0 clusters, leave it to the spec."""
    return spec.to_dict()[name] in values or None in values or (name == "clusters" and 0 in values)


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
