"""ONNX Runtime, where it is installed: sessions, runs and inputs that fit, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from splitquant.errors import MissingExtraError, SourceError
from splitquant.onnx.feeds import Feeds, generated, ways

Model = ModelProto | str | Path


def is_at_hand() -> bool:
    """Whether ONNX Runtime is installed."""
    return find_spec("onnxruntime") is not None


def session_of(
    model: Model, optimised: Path | None = None, *, optimise: bool = True, entries: Mapping[str, str] | None = None
) -> Any:
    """A session on the CPU.

    Args:
        model: a file, or a model in memory.
        optimised: where the optimised graph goes; read it with `graph_at`.
        optimise: whether the graph is optimised at all.
        entries: of the session, by name.

    Raises:
        MissingExtraError: without onnxruntime.
        SourceError: where it does not load the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and told once
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, entry in (entries or {}).items():
        options.add_session_config_entry(name, entry)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{optimised.name}.data"
        )
    try:
        given = model.SerializeToString() if isinstance(model, ModelProto) else str(model)
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common class
        raise SourceError(f"{label_of(model)}: ONNX Runtime does not load it ({error})") from error


def run(session: Any, feeds: Feeds) -> list[Any]:
    """All outputs; SourceError where the model does not run with these inputs."""
    try:
        found: list[Any] = session.run(None, feeds)
    except Exception as error:  # onnxruntime's own exceptions have no common class
        shapes = {name: array.shape for name, array in feeds.items()}
        raise SourceError(
            f"ONNX Runtime does not run the model with inputs of the shapes {shapes} ({error}); "
            "give real inputs (--inputs FILE.npz), or the sizes of its open dimensions (--size NAME=N)"
        ) from error
    return found


def graph_at(path: Path) -> ModelProto:
    """The graph of a file, without its external data."""
    return onnx.load(str(path), load_external_data=False)


def label_of(model: Model) -> str:
    """What errors call a model."""
    return "the model in memory" if isinstance(model, ModelProto) else str(model)


def made_up(
    session: Any, graph: ModelProto, sets: int, sizes: Mapping[str, int] | None = None, *, least: int = 0
) -> list[Feeds]:
    """Sets of made-up inputs that a model runs with and makes numbers of, in the first of the ways to make them up.

    Args:
        session: of the model.
        graph: the model.
        sets: how many.
        sizes: of open dimensions, by name.
        least: sizes of open dimensions below are not tried, where there are larger ones.

    Raises:
        SourceError: as ONNX Runtime said it at first, where there is no such way.
    """
    first: SourceError | None = None
    usual: list[Feeds] | None = None
    possible = list(ways(graph, sizes))
    for way in [way for way in possible if way.size >= least] or sorted(possible, key=lambda way: -way.size):
        feeds = [generated(graph, seed, sizes, way) for seed in range(sets)]
        try:
            outputs = run(session, feeds[0])
        except SourceError as error:
            first = first or error
            continue
        if all(np.size(one) for one in outputs if isinstance(one, np.ndarray)):
            return feeds
        usual = usual or feeds
    if usual is not None:
        return usual
    assert first is not None
    raise first
