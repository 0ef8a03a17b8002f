"""Claim: our scorer gives the numbers of lm-evaluation-harness for multiple choice, in a fraction of the processor time.

    python -m benchmarks.quality.multiple_choice MODEL ARC_JSONL [--limit 100] [--batch 8]

The same questions of AI2 ARC through both, one after the other in one process: every decision, the largest difference of a
log-likelihood, the processor seconds of each. lm-evaluation-harness comes with requirements/lm-eval.txt.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from splitquant.evaluate import Choices, LanguageModel, Run, choices, open_language_model

TASK = """task: own_arc
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
doc_to_choice: "{{{{choices.text}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


def theirs(
    model: LanguageModel, file: Path, limit: int, batch: int
) -> tuple[list[list[float]], dict[str, float], float]:
    """The log-likelihoods, the metrics and the processor seconds of lm-evaluation-harness."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "own_arc.yaml"
        task.write_text(TASK.format(file=file.resolve()))
        wrapped = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=batch)
        manager = TaskManager(include_defaults=False)
        started = time.process_time()
        found = lm_eval.simple_evaluate(
            wrapped, tasks=[str(task)], task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=True
        )
        seconds = time.process_time() - started
    (samples,), (metrics,) = found["samples"].values(), found["results"].values()
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    scores = [[float(one[0]) for one in sample["filtered_resps"]] for sample in ordered]
    return scores, {name: metrics[f"{name},none"] for name in ("acc", "acc_norm")}, seconds


def ours(model: LanguageModel, file: Path, limit: int, batch: int) -> tuple[Choices, float]:
    """Our answers and the processor seconds they took, files read and all."""
    started = time.process_time()
    found = choices(model, file, limit=limit, run=Run(batch))
    return found, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, help="a Hugging Face folder, float or quantized")
    parser.add_argument("questions", type=Path, help="AI2 ARC's own JSONL")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    if find_spec("lm_eval") is None:
        raise SystemExit("lm_eval is not installed; it comes with: pip install -r requirements/lm-eval.txt")
    os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1")
    model = open_language_model(options.model)
    choices(model, options.questions, limit=2)  # the first passes of a model allocate
    mine, my_seconds = ours(model, options.questions, options.limit, options.batch)
    scores, metrics, their_seconds = theirs(model, options.questions, options.limit, options.batch)
    pairs = list(zip(mine.answers, scores, strict=True))
    equal = sum(max(range(len(b)), key=b.__getitem__) == a.chosen for a, b in pairs)
    largest = max(abs(x - y) for a, b in pairs for x, y in zip(a.scores, b, strict=True))
    print(f"{options.model.name}, {options.questions.name}, {len(pairs)} questions, batch {options.batch}")
    for name in ("acc", "acc_norm"):
        print(f"{name}: splitquant {getattr(mine, name).value:.4f}, lm-eval {metrics[name]:.4f}")
    print(f"equal decisions: {equal} of {len(pairs)}; largest difference of a log-likelihood: {largest:.1e}")
    print(
        f"processor seconds: splitquant {my_seconds:.1f}, lm-eval {their_seconds:.1f}: {their_seconds / my_seconds:.1f}x"
    )


if __name__ == "__main__":
    main()
