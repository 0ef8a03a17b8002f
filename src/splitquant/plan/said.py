"""A spec from what somebody said, such that all of it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError


def spec_as_said(said: Mapping[str, Any], **usual: Any) -> QuantSpec:
    """The spec of the fields that were said, over the usual ones (over the defaults).

    Exists because some strategies decide a field themselves: `QuantSpec` then takes their word. Raises SpecError where they
    decide otherwise than was said, and what `QuantSpec` raises.
    """
    spec = QuantSpec.from_dict({**usual, **said})
    for name, value in said.items():
        decided = getattr(spec, name)
        if not holds(spec, name, (value,)):
            raise SpecError(
                f"{name} is {_shown(value)}, and the strategy {spec.strategy} is always {name} {_shown(decided)}; leave one of them out"
            )
    return spec


def holds(spec: QuantSpec, name: str, values: tuple[Any, ...]) -> bool:
    """Whether a spec has one of the values that were said of a field; None, and 0 clusters, leave it to the spec."""
    return spec.to_dict()[name] in values or None in values or (name == "clusters" and 0 in values)


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
