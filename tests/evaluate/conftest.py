"""Tiny models and questions, made once."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from builders.language_models import ARC, build, byte_tokenizer

# Without the extra 'hf' no model can be made; what needs none of it stands in the files named here.
if not all(find_spec(need) for need in ("torch", "transformers", "safetensors")):
    collect_ignore = [
        file.name
        for file in Path(__file__).parent.glob("test_*.py")
        if file.stem not in ("test_statistics", "test_run", "test_questions")
    ]


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            # transformers and its dependencies deprecate parts of each other and of Python; none of it is ours
            for kind in ("DeprecationWarning", "FutureWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    if find_spec("torch") is None or find_spec("transformers") is None:
        return
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def language_model():
    """Makes language models in memory."""
    from splitquant.evaluate import LanguageModel

    def make(kind="llama", *, begins=True, chat=False, seed=0):
        return LanguageModel(build(kind, seed), byte_tokenizer(begins=begins, chat=chat), name=kind)

    return make


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A float folder and the quantized one of it."""
    import splitquant

    base = tmp_path_factory.mktemp("models")
    build("llama").save_pretrained(base / "float")
    byte_tokenizer(begins=True).save_pretrained(base / "float")
    splitquant.quantize(base / "float", base / "int3", splitquant.QuantSpec(bits=3), threads=1)
    return base / "float", base / "int3"


@pytest.fixture(scope="session")
def arc(tmp_path_factory):
    """A file of 24 questions as ARC has them."""
    file = tmp_path_factory.mktemp("questions") / "arc.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ARC), encoding="utf-8")
    return file
