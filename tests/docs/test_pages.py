"""What the pages say is what the tree does: figures, commands, links, code."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from builders.folders import tiny_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def load(path):
    """A module by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line_page():
    """docs/cli.md is the commands' own help; `python tests/docs/cli_page.py` rewrites it."""
    cli_page = load(ROOT / "tests" / "docs" / "cli_page.py")
    assert cli_page.PAGE.read_text(encoding="utf-8") == cli_page.page()


def test_readme_table():
    """The README's table is the one that the benchmark wrote."""
    rows = [line for line in (ROOT / "docs/results/minilm.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert "\n".join(rows) in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_and_benchmarks_that_a_page_names_are_there(page):
    """A page that sends its reader to a test or a benchmark names a file of the tree."""
    named = set(re.findall(r"\b(?:tests|benchmarks)/[a-z0-9_/]+\.py\b", page.read_text(encoding="utf-8")))
    assert {path for path in named if not (ROOT / path).is_file()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    """Every relative link leads to a file."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def blocks():
    """The README's code blocks: their language and their lines."""
    found, language = [], None
    for line in README.splitlines():
        if line.startswith("```"):
            if language is None:
                language = line.removeprefix("```")
                found.append((language, []))
            else:
                language = None
        elif language is not None:
            found[-1][1].append(line)
    return found


def commands():
    """The command lines in the README's code blocks."""
    lines = [line.removeprefix("$ ").split("#")[0] for language, lines in blocks() if not language for line in lines]
    return [line.strip() for line in lines if line.startswith("splitquant ")]


def test_readme_commands(tmp_path, monkeypatch):
    """The README's commands run, in the order in which they stand."""
    onnx = pytest.importorskip("onnx")
    np = pytest.importorskip("numpy")
    pytest.importorskip("onnxruntime")
    from typer.testing import CliRunner

    from splitquant.cli.main import app

    monkeypatch.chdir(tmp_path)
    for name in ("SRC", "all-MiniLM-L6-v2"):
        tiny_folder(tmp_path / name)
    weight = np.random.default_rng(0).standard_t(3, (64, 32)).astype(np.float32)
    graph = onnx.parser.parse_graph("g (float[N, 64] x) => (float[N, 32] y) { y = MatMul(x, w) }")
    graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    opsets = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), "model.onnx")
    assert len(commands()) == 13
    for line in commands():
        verb, *arguments = shlex.split(line)[1:]
        force = ["--force"] if verb == "quantize" and "--dry-run" not in arguments else []
        result = CliRunner().invoke(app, [verb, *arguments, *force])
        assert result.exit_code == 0, (line, result.output)


def test_readme_python(tmp_path, monkeypatch):
    """The README's Python example runs on a model that transformers wrote."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    monkeypatch.chdir(tmp_path)
    transformers.LlamaForCausalLM(config).save_pretrained("SRC")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained("SRC")
    (code,) = ("\n".join(lines) for language, lines in blocks() if language == "python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert type(names["model"]).__name__ == "LlamaForCausalLM"
    assert names["tokenizer"]("a")["input_ids"] == [1]
