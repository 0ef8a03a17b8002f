"""The command line: exit codes, one line per error, results on standard output, talk on standard error."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import splitquant
from folders import (
    flip_byte,
    normal,
    place_of,
    read_folder,
    tiny_folder,
    tiny_sharded,
    tiny_tensors,
    tree,
    write_folder,
)
from splitquant import api
from splitquant.cli import main
from splitquant.core.kernels import kernels
from splitquant.core.spec import PAPER, QuantSpec

SRC = Path(splitquant.__file__).parents[1]
VERBS = ["quantize", "inspect", "verify", "dequantize"]
ESCAPE = "\x1b"


@dataclass(frozen=True)
class Done:
    """What a command gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys):
    """The command line in this process."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["splitquant", *map(str, args)])
        capsys.readouterr()
        try:
            main.run()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def source(tmp_path):
    """A tiny float folder."""
    return tiny_folder(tmp_path / "m", files={"tokenizer.json": "{}"})


def environment(**more):
    """The environment of a command in a process of its own."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")
    }
    return {**kept, "PYTHONPATH": str(SRC), "TERM": "xterm-256color", **more}


def process(*args, **more):
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "splitquant.cli.main", *map(str, args)]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def refused(done, code, *says):
    """An expected error: its code, one line that begins with `error:`, nothing on standard output."""
    assert done.code == code, done
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    assert done.out == ""
    for text in says:
        assert text in done.err


@pytest.mark.parametrize("verb", [(), *[(verb,) for verb in VERBS]], ids=lambda verb: " ".join(verb) or "splitquant")
def test_help(cli, verb, monkeypatch):
    """Every verb explains itself, with its options, and -h is --help."""
    monkeypatch.setenv("COLUMNS", "200")
    done = cli(*verb, "--help")
    assert done.code == 0
    assert "Usage:" in done.out
    assert cli(*verb, "-h").out == done.out
    assert ESCAPE not in done.out
    if verb == ("quantize",):
        for option in [
            "--output",
            "--bits",
            "--clusters",
            "--strategy",
            "--granularity",
            "--layout",
            "--symmetric",
            "--embeddings",
            "--include",
            "--exclude",
            "--preset",
            "--max-memory",
            "--threads",
            "--dry-run",
            "--strict",
            "--json",
            "--force",
            "--quiet",
            "--verbose",
        ]:
            assert option in done.out


def test_no_arguments_is_help(cli):
    """Without arguments the verbs are shown, and the code says that nothing was done."""
    done = cli()
    assert done.code == 2
    assert all(verb in done.out + done.err for verb in VERBS)


def test_version(cli):
    """The version and the kernels in use."""
    done = cli("--version")
    assert (done.code, done.out) == (0, f"splitquant {splitquant.__version__} ({kernels().name} kernels)\n")


def test_version_names_the_kernels_that_were_asked_for():
    """SPLITQUANT_KERNELS chooses the kernels; what makes no sense is wrong usage."""
    assert "(numpy kernels)" in process("--version", SPLITQUANT_KERNELS="numpy").out
    refused(process("--version", SPLITQUANT_KERNELS="fast"), 2, "SPLITQUANT_KERNELS is 'fast'")


def test_help_loads_no_framework():
    """Help and version load neither torch nor transformers."""
    code = "import sys; from splitquant.cli import main; sys.argv = ['splitquant', '--version']\ntry:\n    main.run()\nexcept SystemExit:\n    pass\n"
    code += "print(sorted({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_whole_way(cli, tmp_path, source):
    """quantize, inspect, verify, dequantize: results on standard output, the next step on standard error."""
    q, f = tmp_path / "q", tmp_path / "f"
    done = cli("quantize", source, "-o", q)
    assert done.code == 0
    assert str(QuantSpec()) in done.out
    assert f"written to {q}; next: splitquant verify {source} {q}" in done.err
    assert "peak memory" in done.err
    done = cli("inspect", q)
    assert done.code == 0
    assert "dB" in done.out
    done = cli("verify", source, q)
    assert (done.code, "verified: " in done.err) == (0, True)
    assert f"{len(tiny_tensors())} tensors" in done.err
    done = cli("dequantize", q, "-o", f)
    assert done.code == 0
    assert f"written to {f}" in done.err
    assert set(read_folder(f)) == set(tiny_tensors())


@pytest.mark.parametrize("width", ["40", None])
def test_output_to_a_pipe_is_plain(tmp_path, source, width):
    """Without a terminal there is no escape code, with any width and any wish for colours but FORCE_COLOR."""
    more = {"COLUMNS": width} if width else {}
    for args in (("quantize", source, "-o", tmp_path / "q", "-v"), ("quantize", source, "-o", tmp_path / "q")):
        done = process(*args, **more)
        assert ESCAPE not in done.out + done.err
        assert "\r" not in done.out + done.err


def on_terminal(*args, **more):
    """The output of a command whose standard output and error are a terminal."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "splitquant.cli.main", *map(str, args)]
    with subprocess.Popen(command, env=environment(**more), stdin=slave, stdout=slave, stderr=slave) as running:
        os.close(slave)
        text = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            text += piece
    os.close(master)
    return running.returncode, text.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7](;[0-9;]*)?m|\x1b\[38;")


def test_colour_on_a_terminal_only_and_never_with_no_color(tmp_path, source):
    """On a terminal errors are red, and with NO_COLOR nothing has a colour."""
    code, text = on_terminal("inspect", tmp_path / "nowhere")
    assert code == 1
    assert COLOUR.search(text)
    code, text = on_terminal("inspect", tmp_path / "nowhere", NO_COLOR="1")
    assert code == 1
    assert ESCAPE not in text
    code, text = on_terminal("quantize", source, "-o", tmp_path / "q", NO_COLOR="1")
    assert code == 0
    assert not COLOUR.search(text)


@dataclass(frozen=True)
class Wrong:
    """Options of quantize that make no sense, and what the message must say."""

    id: str
    options: tuple[str, ...]
    says: str


WRONG = [
    Wrong("memory no size", ("--max-memory", "lots"), "'lots' is not a size"),
    Wrong("memory too little", ("--max-memory", "1MiB"), "max-memory is 1 MiB"),
    Wrong("memory beyond reason", ("--max-memory", "9" * 400), "size"),
    Wrong("threads negative", ("--threads=-1",), "threads is -1"),
    Wrong("granularity", ("--granularity", "row"), "'row'"),
    Wrong("group of 1", ("--granularity", "group:1"), "'group:1'"),
    Wrong("group of ²", ("--granularity", "group:²"), "'group:²'"),
    Wrong("strategy", ("--strategy", "magic"), "'magic'"),
    Wrong("layout", ("--layout", "diagonal"), "'diagonal'"),
    Wrong("embeddings", ("--embeddings", "none"), "'none'"),
    Wrong("embeddings of 9 bits", ("--embeddings", "9"), "9"),
    Wrong("embeddings of ² bits", ("--embeddings", "²"), "'²'"),
    Wrong("include matches nothing", ("--include", "nothing.*"), "'nothing.*' matches none of the"),
    Wrong("exclude matches nothing", ("--exclude", "nothing.*"), "'nothing.*' matches none of the"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.id)
def test_wrong_usage(cli, tmp_path, source, case):
    """Options that make no sense are one error line and exit code 2, and nothing is written."""
    refused(cli("quantize", source, "-o", tmp_path / "q", *case.options), 2, case.says)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize(
    "args",
    [
        ("quantize",),
        ("quantize", "m"),
        ("quantize", "m", "-o", "q", "--bits", "9"),
        ("quantize", "m", "-o", "q", "--bits", "x"),
        ("quantize", "m", "-o", "q", "-k", "0"),
        ("quantize", "m", "-o", "q", "--preset", "worst"),
        ("quantize", "m", "-o", "q", "--unknown"),
        ("verify", "m"),
        ("dequantize", "m"),
        ("frobnicate",),
    ],
    ids=" ".join,
)
def test_wrong_words(cli, args):
    """What cannot be parsed is exit code 2 without a traceback."""
    done = cli(*args)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "Usage" in done.err


def test_failures(cli, tmp_path, source):
    """What fails is one error line and exit code 1."""
    q = tmp_path / "q"
    refused(cli("quantize", tmp_path / "nowhere", "-o", q), 1, "nowhere: no such folder")
    refused(cli("inspect", tmp_path / "nowhere"), 1, "nowhere: no such folder")
    refused(cli("quantize", source, "-o", source / "q"), 1, "lies in the source")
    refused(cli("dequantize", source, "-o", q), 1, "is no splitquant folder")
    refused(cli("verify", source, source), 1, "is no splitquant folder")
    assert cli("quantize", source, "-o", q, "-q").code == 0
    refused(cli("quantize", source, "-o", q), 1, "exists and is not empty", "--force")
    refused(cli("quantize", q, "-o", tmp_path / "q2"), 1, "already quantized", "splitquant dequantize")
    assert cli("quantize", source, "-o", q, "-q", "--force").code == 0
    flip_byte(q / "model.safetensors", place_of(q / "model.safetensors", "lm_head.weight.codes")[0])
    refused(cli("verify", source, q), 1, "'lm_head.weight.codes' has the checksum")


def test_failure_in_a_process(tmp_path):
    """The same holds for a process: one line, no traceback, code 1."""
    refused(process("quantize", tmp_path / "nowhere", "-o", tmp_path / "q"), 1, "no such folder")


def test_nan_fails_by_name(cli, tmp_path):
    """A NaN is an error with the tensor's name, and the remedy works."""
    weight = normal(1, 64, 64)
    weight[2, 2] = 0x7FC0
    source = write_folder(tmp_path / "m", {"a.weight": weight, "b.weight": normal(2, 64, 64)})
    refused(cli("quantize", source, "-o", tmp_path / "q"), 1, "'a.weight'", "--exclude 'a.weight'")
    assert cli("quantize", source, "-o", tmp_path / "q", "--exclude", "a.weight").code == 0


def test_quiet_prints_nothing(cli, tmp_path, source):
    """With -q nothing is printed by any verb."""
    for args in (
        ("quantize", source, "-o", tmp_path / "q", "-q", "-v"),
        ("quantize", source, "-o", tmp_path / "q2", "-q", "--dry-run"),
        ("verify", source, tmp_path / "q", "-q"),
        ("dequantize", tmp_path / "q", "-o", tmp_path / "f", "--quiet"),
    ):
        assert cli(*args) == Done(0, "", "")


def test_verbose_lists_every_tensor(tmp_path, source):
    """With -v (and by inspect) every tensor is listed, in a pipe on one line of its own."""
    for args in (("quantize", source, "-o", tmp_path / "q", "--dry-run", "-v"), ("inspect", source)):
        lines = process(*args).out.splitlines()
        for name in tiny_tensors():
            assert len([line for line in lines if line.startswith(f"{name} ")]) == 1, name


def test_json(cli, tmp_path, source):
    """--json writes the report to a file, or to standard output alone."""
    done = cli("quantize", source, "-o", tmp_path / "q", "--json", tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    assert done.out != ""
    assert data["run"]["threads"] >= 1
    folder = json.loads((tmp_path / "q/splitquant_report.json").read_text())
    assert data["tensors"] == folder["tensors"]
    for args in (
        ("quantize", source, "-o", tmp_path / "q", "--force", "--json", "-"),
        ("quantize", source, "-o", tmp_path / "q2", "--json", "-", "-q", "-v"),
        ("inspect", tmp_path / "q", "--json", "-"),
    ):
        done = cli(*args)
        assert done.code == 0
        assert json.loads(done.out)["tensors"] == folder["tensors"]
    for args in (
        ("inspect", source, "--json", "-"),
        ("quantize", source, "-o", tmp_path / "q3", "--dry-run", "--json", "-"),
    ):
        planned = json.loads(cli(*args).out)["tensors"]
        assert [(t["name"], t["stored_bytes"]) for t in planned] == [
            (t["name"], t["stored_bytes"]) for t in folder["tensors"]
        ]
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_json_to_nowhere_is_refused_before_the_work(cli, tmp_path, source):
    """A report that cannot be written is found before the run, not after it."""
    done = cli("quantize", source, "-o", tmp_path / "q", "--json", tmp_path / "no/such/r.json")
    assert done.code in (1, 2)
    assert done.err.startswith("error: ")
    assert "r.json" in done.err
    assert not (tmp_path / "q").exists()


def test_dry_run_writes_nothing_and_tells_the_sizes(cli, tmp_path, source):
    """--dry-run writes nothing, and its sizes are those of the run."""
    before = tree(tmp_path)
    planned = cli("quantize", source, "-o", tmp_path / "q", "--dry-run")
    assert planned.code == 0
    assert tree(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    real = cli("quantize", source, "-o", tmp_path / "q")
    sizes = re.compile(r"[\d.]+ [kMG]?B\b")
    assert sizes.findall(planned.out) == sizes.findall(real.out) != []
    data = json.loads(cli("quantize", source, "-o", tmp_path / "q2", "--dry-run", "--json", "-").out)
    stored = sum(len(tensor.data) for tensor in read_folder(tmp_path / "q").values())
    assert sum(tensor["stored_bytes"] for tensor in data["tensors"]) == stored


def test_dry_run_needs_no_free_destination(cli, tmp_path, source):
    """A plan can be seen whatever is at the destination."""
    (tmp_path / "q").mkdir()
    (tmp_path / "q/x").write_text("x")
    assert cli("quantize", source, "-o", tmp_path / "q", "--dry-run").code == 0
    assert tree(tmp_path / "q") == {"x": b"x"}


def test_preset_paper(cli, tmp_path, source):
    """--preset paper is its explicit options, and options win over it."""
    explicit = ["--bits", "4", "-k", "3", "--strategy", "kmeans", "--granularity", "tensor", "--layout", "parallel"]
    cli("quantize", source, "-o", tmp_path / "q1", "--preset", "paper")
    cli("quantize", source, "-o", tmp_path / "q2", *explicit)
    assert tree(tmp_path / "q1") == tree(tmp_path / "q2")
    api.quantize(source, tmp_path / "q3", PAPER)
    assert tree(tmp_path / "q1") == tree(tmp_path / "q3")
    cli("quantize", source, "-o", tmp_path / "q4", "--preset", "paper", "--bits", "3", "--clusters", "2")
    specs = json.loads((tmp_path / "q4/config.json").read_text())["quantization_config"]["specs"]
    assert {**PAPER.to_dict(), "bits": 3, "clusters": 2} in specs


def test_defaults_are_those_of_the_library(cli, tmp_path, source):
    """The command without options is the function without options; `best` is the default preset."""
    cli("quantize", source, "-o", tmp_path / "q1")
    cli("quantize", source, "-o", tmp_path / "q2", "--preset", "best", "--threads", "1", "--max-memory", "2GiB")
    api.quantize(source, tmp_path / "q3")
    assert tree(tmp_path / "q1") == tree(tmp_path / "q2") == tree(tmp_path / "q3")


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (["--bits", "3"], {"bits": 3, "clusters": 4}),
        (["-k", "1"], {"clusters": 1}),
        (["--clusters", "8"], {"clusters": 8}),
        (["--layout", "parallel"], {"layout": "parallel", "clusters": 3}),
        (["--symmetric"], {"symmetric": True}),
        (["--granularity", "group:16"], {"granularity": "group:16"}),
        (["--strategy", "kmeans"], {"strategy": "kmeans"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_reach_the_spec(cli, tmp_path, source, options, spec):
    """Every option of a spec arrives, and the others keep their defaults."""
    assert cli("quantize", source, "-o", tmp_path / "q", *options).code == 0
    specs = json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]["specs"]
    assert QuantSpec(**spec).to_dict() in specs


@pytest.mark.parametrize(("choice", "bits"), [("keep", None), ("4", 4), ("8", 8)])
def test_embeddings(cli, tmp_path, source, choice, bits):
    """Embeddings and heads are kept, or get so many bits per channel."""
    assert cli("quantize", source, "-o", tmp_path / "q", "--embeddings", choice).code == 0
    report = json.loads((tmp_path / "q/splitquant_report.json").read_text())["tensors"]
    for item in report:
        if item["name"] in ("model.embed_tokens.weight", "lm_head.weight"):
            assert (item["spec"] and item["spec"]["bits"]) == bits
            assert item["spec"] is None or (item["spec"]["clusters"], item["spec"]["symmetric"]) == (1, True)


def test_include_and_exclude(cli, tmp_path, source):
    """Patterns may be given several times; include wins over exclude, both over the rules."""
    done = cli(
        *("quantize", source, "-o", tmp_path / "q", "--exclude", "*.mlp.*", "--exclude", "lm_head.weight"),
        *("--include", "*.up_proj.weight", "--include", "*.mlp.gate.weight"),
    )
    assert done.code == 0
    report = json.loads((tmp_path / "q/splitquant_report.json").read_text())["tensors"]
    found = {item["name"]: (item["outcome"], item["reason"]) for item in report}
    assert found["model.layers.1.mlp.up_proj.weight"][0] == "quantized"
    assert found["model.layers.1.mlp.down_proj.weight"] == ("kept", "excluded by '*.mlp.*'")
    assert found["lm_head.weight"] == ("kept", "excluded by 'lm_head.weight'")
    assert found["model.embed_tokens.weight"][0] == "quantized"


def test_strict(cli, tmp_path, source):
    """--strict fails where a weight would be kept, names it, and writes nothing; else it changes nothing."""
    done = cli("quantize", source, "-o", tmp_path / "q", "--strict", "--exclude", "*.layers.1.mlp.up_proj.weight")
    refused(done, 1, "--strict: 1 weights would be kept", "'model.layers.1.mlp.up_proj.weight'", "excluded by")
    assert not (tmp_path / "q").exists()
    assert cli("quantize", source, "-o", tmp_path / "q", "--strict").code == 0


@pytest.mark.parametrize("name", ["out[bold]", "out[red]x", "a [b] c", "[i]", "with space", "ümläut", ":key:"])
def test_brackets_in_paths_are_text(cli, tmp_path, source, name):
    """A path is shown as it is."""
    q, f = tmp_path / name, tmp_path / f"f{name}"
    done = cli("quantize", source, "-o", q)
    assert done.code == 0
    assert f"written to {q}; next: " in done.err
    done = cli("dequantize", q, "-o", f)
    assert done.code == 0
    assert f"written to {f}" in done.err


def test_closing_tag_in_a_path(cli, tmp_path, source):
    """A path that looks like a closing tag is no error."""
    done = cli("quantize", source, "-o", tmp_path / "x[" / "b]")  # the text is x[/b]
    assert done.code == 0
    assert "x[/b]" in done.err


def test_dequantize_needs_no_report(cli, tmp_path, source):
    """The report is not needed to get the floats back."""
    api.quantize(source, tmp_path / "q")
    (tmp_path / "q/splitquant_report.json").unlink()
    assert cli("dequantize", tmp_path / "q", "-o", tmp_path / "f").code == 0


def test_inspect_of_a_float_folder_says_so(cli, source):
    """A float folder is shown as what would become of it."""
    done = cli("inspect", source)
    assert done.code == 0
    assert "a float folder" in done.err
    assert "dB" not in done.out


def test_inspect_of_a_foreign_quantized_folder(cli, tmp_path):
    """A folder that something else quantized is refused."""
    config = {"quantization_config": {"quant_method": "gptq"}}
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 64, 64)}, config=config)
    refused(cli("inspect", source), 1, "'gptq'")


SLOW = """
    import sys, time
    from pathlib import Path
    from splitquant.checkpoint import convert
    from splitquant.cli import main

    marker = Path(sys.argv.pop(1))
    original = convert.transform_tensor
    done = []

    def transform(plan, streams, pool):
        if len(done) > 6:
            marker.touch()
            time.sleep(1.5)
        done.append(plan.name)
        return original(plan, streams, pool)

    convert.transform_tensor = transform
    main.run()
"""


def test_interrupt(tmp_path):
    """Ctrl-C is exit code 130 and one line that says what to do; the same command takes up finished shards."""
    source, q, marker = tiny_sharded(tmp_path / "m"), tmp_path / "q", tmp_path / "marker"
    args = ["quantize", str(source), "-o", str(q), "--threads", "1"]
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(marker), *args]
    with subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 30
        while not marker.exists():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert out == ""
    assert re.fullmatch("error: interrupted; the same command takes up .*\n", err)
    assert not q.exists()
    done = process(*args)
    assert done.code == 0
    assert "1 shards taken up" in done.err or "1 shard taken up" in done.err
    api.quantize(source, tmp_path / "clean")
    assert tree(q) == tree(tmp_path / "clean")


def test_closed_pipe_is_no_traceback(source):
    """A reader that goes away (`| head -1`) is no reason for a traceback."""
    command = f"{sys.executable} -m splitquant.cli.main inspect '{source}' --json - | head -c 1"
    done = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_inspect_without_a_report(cli, tmp_path, source):
    """A quantized folder that has lost its report is still shown, without figures."""
    api.quantize(source, tmp_path / "q")
    (tmp_path / "q/splitquant_report.json").unlink()
    done = cli("inspect", tmp_path / "q")
    assert done.code == 0
    assert "INT4 k=4 min_error channel" in done.out
    assert "SQNR" not in done.out.splitlines()[-1]


def test_the_folder_one_is_in_is_never_replaced(cli, tmp_path, source, monkeypatch):
    """`-o .` is refused, with --force too."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(cli("quantize", source, "-o", ".", "--force"), 1, "the folder you are in")


def test_json_never_overwrites_the_model(cli, tmp_path, source):
    """--json at the place of the source or of the destination is refused before any work."""
    model = tmp_path / "model.onnx"
    model.write_bytes(b"a model")
    for verb in ("quantize", "split"):
        for place in (model, tmp_path / "out.onnx"):
            refused(cli(verb, model, "-o", tmp_path / "out.onnx", "--json", place), 1, "choose another file")
    assert model.read_bytes() == b"a model"
    refused(cli("quantize", source, "-o", tmp_path / "q", "--json", tmp_path / "q"), 1, "choose another file")
