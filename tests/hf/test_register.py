"""The import hook, each time in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import splitquant

ROOT = Path(splitquant.__file__).parents[1]


def python(code: str) -> str:
    """What a fresh interpreter prints; its errors fail the test."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CHECK = """
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
assert AUTO_QUANTIZER_MAPPING["splitquant"].__name__ == "SplitQuantizer"
assert AUTO_QUANTIZATION_CONFIG_MAPPING["splitquant"].__name__ == "SplitQuantConfig"
print("registered")
"""


def test_import_pulls_in_no_framework():
    """`import splitquant` and `import splitquant.hf.register` import neither torch nor transformers, and little else."""
    code = (
        "import sys; before = set(sys.modules); import splitquant, splitquant.hf.register, splitquant.hf;"
        "new = set(sys.modules) - before;"
        "print(sorted({'torch', 'transformers', 'safetensors', 'numpy', 'rich', 'typer'} & set(sys.modules)), len(new) < 120)"
    )
    assert python(code) == "[] True"


@pytest.mark.parametrize(
    "order", ["import transformers; import splitquant", "import transformers.quantizers.auto; import splitquant"]
)
def test_transformers_first(order):
    """Where transformers came first, splitquant is registered at once, or when its quantizers are used."""
    assert python(order + CHECK) == "registered"


def test_splitquant_first():
    """Where splitquant came first, it is registered when transformers is used.

    Installing again changes nothing, threads that import both at once get one registration, and the module of
    transformers still knows its source.
    """
    code = """
import sys, threading
def go():
    import splitquant
    from splitquant.hf.register import install
    install(); install()
    import transformers.quantizers.auto
    install()
threads = [threading.Thread(target=go) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
assert sum(type(finder).__module__ == "splitquant.hf.register" for finder in sys.meta_path) == 1
import transformers.quantizers.auto as auto
import inspect
from importlib.util import find_spec
assert find_spec("transformers.quantizers.auto").origin == auto.__file__
assert "AutoHfQuantizer" in inspect.getsource(auto)
"""
    assert python(code + CHECK) == "registered"


def test_failure_is_told_when_used(tmp_path):
    """A transformers that does not fit can still be imported; using a quantized folder says what is wrong."""
    code = f"""
import json, sys, types
import splitquant
broken = types.ModuleType("splitquant.hf.quantizer")
sys.modules["splitquant.hf.quantizer"] = broken
import transformers.quantizers.auto as auto
for use in (
    lambda: auto.AutoQuantizationConfig.from_dict({{"quant_method": "splitquant", "format_version": 1}}),
    lambda: splitquant.load({str(tmp_path)!r}),
):
    try:
        use()
    except ImportError as error:
        assert "does not work with this transformers (version" in str(error), error
        assert "SplitQuantizer" in str(error)
    else:
        raise AssertionError("no error")
print("told")
"""
    (tmp_path / "config.json").write_text(
        '{"quantization_config": {"quant_method": "splitquant", "format_version": 1, "specs": [], "tensors": {}}}'
    )
    assert python(code) == "told"


def test_what_is_heavy_waits_for_its_use():
    """A program that imports transformers and loads none of our folders does not import our classes; its first use does."""
    code = (
        "import torch, splitquant, sys, transformers.quantizers.auto as auto;"
        "print('splitquant.hf.quantizer' in sys.modules, 'splitquant' in auto.AUTO_QUANTIZER_MAPPING)"
    )
    assert python(code + CHECK) == "False True\nregistered"
