"""JSON objects in small files: read with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from splitquant.errors import SourceError, SpecError
from splitquant.storage.memory import MIB

_LONGEST_EDITED = 64 * MIB


class _RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(key)
        found[key] = value
    return found


def read_json(path: Path, most: int = 16 * MIB) -> dict[str, Any]:
    """Read the JSON object of a model's file; SourceError where it is none, or larger than `most` bytes."""
    return _read(path, SourceError, "; download or export it again", most)


def read_edited_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that somebody wrote or edited; SpecError where it is none, or has a key twice."""
    return _read(path, SpecError, "", _LONGEST_EDITED, object_pairs_hook=_without_repeats)


def _read(
    path: Path, error_type: type[SourceError | SpecError], remedy: str, most: int, **options: Any
) -> dict[str, Any]:
    try:
        nbytes = path.stat().st_size
    except OSError as error:
        raise error_type(f"{path}: cannot be read ({error.strerror or error})") from error
    if nbytes > most:  # as Python objects it takes some 25 times as much memory
        raise error_type(
            f"{path}: has {nbytes / MIB:.0f} MiB; expected a JSON file of at most {most // MIB} MiB{remedy}"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"), **options)
    except OSError as error:
        raise error_type(f"{path}: cannot be read ({error.strerror or error})") from error
    except _RepeatedKeyError as error:
        raise error_type(f"{path}: has the key {error.args[0]!r} twice; leave one of them") from None
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or an endless integer
        raise error_type(f"{path}: is not JSON ({error}){remedy}") from error
    if not isinstance(data, dict):
        raise error_type(f"{path}: holds a JSON {type(data).__name__}; expected an object")
    return data
