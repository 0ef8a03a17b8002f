"""The command line: help, the way through all verbs, wrong usage, failures: exit codes and one line per error."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

import splitquant
from builders.commands import ESCAPE, environment, process, refused
from builders.folders import (
    flip_byte,
    normal,
    place_of,
    read_folder,
    tiny_tensors,
    write_folder,
)
from splitquant.core.kernels import kernels
from splitquant.core.products import product_kernel
from splitquant.core.spec import QuantSpec

VERBS = ["quantize", "inspect", "verify", "dequantize"]


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
    products = product_kernel() or "decoded weights"
    named = f"splitquant {splitquant.__version__} ({kernels().name} kernels; products by {products})\n"
    assert (done.code, done.out) == (0, named)


def test_version_names_the_kernels_that_were_asked_for():
    """SPLITQUANT_KERNELS chooses the kernels; what makes no sense is wrong usage."""
    assert "(numpy kernels; products by decoded weights)" in process("--version", SPLITQUANT_KERNELS="numpy").out
    assert "products by decoded weights)" in process("--version", SPLITQUANT_PRODUCTS="decode").out
    refused(process("--version", SPLITQUANT_PRODUCTS="fast"), 2, "SPLITQUANT_PRODUCTS is 'fast'", "or 'decode'")
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
    assert done.err.splitlines()[-1] == f"load it in Python: import splitquant; model = splitquant.load({str(q)!r})"
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
