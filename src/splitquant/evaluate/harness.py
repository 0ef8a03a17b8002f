"""lm-evaluation-harness for the tasks that it knows, on the same models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from splitquant.errors import MissingExtraError, SourceError, SpecError
from splitquant.evaluate.model import LanguageModel, first_line
from splitquant.evaluate.statistics import Estimate

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True, slots=True)
class TaskResults:
    """What lm-evaluation-harness found: by task and metric, with its own standard errors."""

    model: str
    version: str
    tasks: dict[str, dict[str, Estimate]]

    def to_dict(self) -> dict[str, Any]:
        """For a JSON report."""
        return {
            "model": self.model,
            "lm_eval": self.version,
            "tasks": {
                task: {metric: value.to_dict() for metric, value in found.items()} for task, found in self.tasks.items()
            },
        }


def lm_eval_tasks(  # noqa: PLR0913 - what is asked of it
    model: LanguageModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch: int = 8,
    seed: int = 0,
    offline: bool = True,
) -> TaskResults:
    """Run tasks of lm-evaluation-harness.

    Args:
        model: see `open_language_model`.
        tasks: names that it knows, or paths of its YAML files.
        limit: the first questions of every task only.
        batch: questions at once.
        seed: of all that it draws.
        offline: whether data sets must lie in the cache of the package datasets already.

    Raises:
        MissingExtraError: without lm-evaluation-harness. SpecError: for a task that it does not know. SourceError: where it
            fails, for instance for a data set that is not there.
    """
    for need in ("lm_eval", "accelerate", "peft"):
        if find_spec(need) is None:
            raise MissingExtraError(f"{need} (of lm-evaluation-harness)", "lm-eval")
    with _offline(offline):
        import lm_eval  # noqa: PLC0415 - an extra, asked for by calling this
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
        from lm_eval.tasks import TaskManager  # noqa: PLC0415

        files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
        for file in files:
            if not file.is_file():
                raise SourceError(f"{file}: no such file; expected a task of lm-evaluation-harness")
        manager = TaskManager(
            include_defaults=len(files) < len(tasks)
        )  # thousands of files, only where names are asked
        unknown = [task for task in tasks if Path(task) not in files and not manager.match_tasks([task])]
        if unknown:
            raise SpecError(f"lm-evaluation-harness knows no task {', '.join(unknown)}; `lm_eval ls tasks` lists them")
        wrapped = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=batch)
        try:
            found = lm_eval.simple_evaluate(
                model=wrapped,
                tasks=list(tasks),
                limit=limit,
                task_manager=manager,
                bootstrap_iters=1000,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                log_samples=False,
            )
        except Exception as error:  # whatever its tasks and their data sets raise
            hint = "; offline, a data set must be in the cache of the package datasets" if offline else ""
            raise SourceError(
                f"lm-evaluation-harness failed at {', '.join(tasks)}: {first_line(error)}{hint}"
            ) from error
    return TaskResults(
        model.name, lm_eval.__version__, {task: dict(_metrics(row)) for task, row in found["results"].items()}
    )


def _metrics(row: dict[str, Any]) -> Iterator[tuple[str, Estimate]]:
    for key, value in row.items():
        metric, _, kind = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, int | float) or not kind:
            continue
        error = row.get(f"{metric}_stderr,{kind}")
        name = metric if kind == "none" else f"{metric} ({kind})"
        yield name, Estimate(float(value), float(error) if isinstance(error, int | float) else float("nan"))


@contextmanager
def _offline(asked: bool) -> Iterator[None]:  # noqa: FBT001 - one word
    before = {name: os.environ.get(name) for name in _OFFLINE}
    if asked:
        os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
