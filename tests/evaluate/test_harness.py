"""lm-evaluation-harness on our folders, and its numbers beside those of our own scorer."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from builders.language_models import ARC
from splitquant.errors import MissingExtraError, SourceError, SpecError
from splitquant.evaluate import choices, lm_eval_tasks, open_language_model

HARNESS = all(find_spec(need) for need in ("lm_eval", "accelerate", "peft"))
needs_harness = pytest.mark.skipif(
    not HARNESS,
    reason="lm-evaluation-harness is not installed (pip install -r requirements/lm-eval.txt)",
)

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{text}"
doc_to_target: "{target}"
doc_to_choice: {choice}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
ARC_TASK = {
    "text": r"Question: {{question}}\nAnswer:",
    "target": "{{choices.label.index(answerKey)}}",
    "choice": '"{{choices.text}}"',
}
MMLU_TASK = {
    "text": r"{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nAnswer:",
    "target": "{{answer}}",
    "choice": '["A", "B"]',
}


@pytest.mark.skipif(HARNESS, reason="lm-evaluation-harness is installed")
def test_missing(folders):
    """Without it the extra is named."""
    with pytest.raises(MissingExtraError, match=r"splitquant\[lm-eval\]"):
        lm_eval_tasks(open_language_model(folders[0]), ["arc_easy"])


def task_file(tmp_path, name, data, lines, fields):
    """A task of the harness over a local file."""
    file = tmp_path / data
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=json.dumps(str(file)), **fields))
    return str(tmp_path / f"{name}.yaml"), file


@needs_harness
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", [0, 1], ids=["float", "int3"])
@pytest.mark.parametrize("form", ["cloze", "letters"])
def test_the_same_numbers(folders, tmp_path, monkeypatch, which, form):
    """acc, acc_norm and their errors are those of our own scorer, for float and quantized folders."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    if form == "cloze":
        task, file = task_file(tmp_path, "own_arc", "arc.jsonl", ARC, ARC_TASK)
    else:
        lines = [
            {"question": line["question"], "choices": line["choices"]["text"][:2], "answer": number % 2}
            for number, line in enumerate(ARC)
        ]
        task, file = task_file(tmp_path, "own_mmlu", "mmlu.jsonl", lines, MMLU_TASK)
    model = open_language_model(folders[which])
    ours, theirs = choices(model, file, form=form), lm_eval_tasks(model, [task])
    (metrics,) = theirs.tasks.values()
    for name, found in (("acc", ours.acc), ("acc_norm", ours.acc_norm)):
        assert found.value == pytest.approx(metrics[name].value)
        assert found.error == pytest.approx(metrics[name].error)
    assert 0 < ours.acc.value < 1
    limited = lm_eval_tasks(model, [task], limit=6)
    assert next(iter(limited.tasks.values()))["acc"].value == pytest.approx(
        choices(model, file, form=form, limit=6).acc.value
    )


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_faults(folders, tmp_path):
    """A task that is not known, a file that is not there, a data set that is not there."""
    model = open_language_model(folders[0])
    with pytest.raises(SpecError, match="knows no task no_such_task"):
        lm_eval_tasks(model, ["no_such_task"])
    with pytest.raises(SourceError, match="no such file"):
        lm_eval_tasks(model, [str(tmp_path / "no.yaml")])
    (tmp_path / "t.yaml").write_text(TASK.format(name="gone", data='"/no/file.jsonl"', **ARC_TASK))
    with pytest.raises(SourceError, match=r"failed at .*offline, a data set must be in the cache"):
        lm_eval_tasks(model, [str(tmp_path / "t.yaml")])
