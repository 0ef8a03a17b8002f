"""What the tests of torch modules share: few threads, and no noise from frameworks that deprecate each other."""

from __future__ import annotations

import importlib.util
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # rounding.py can be imported from any of these tests
if find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.path).parents:
            for category in ("DeprecationWarning", "FutureWarning", "UserWarning"):
                # of torch, transformers, torchao and quanto about each other and about Python; none of it is ours
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cifar10():
    """The module benchmarks/quality/cifar10.py, with its networks and images; skipped where the data are not there."""
    if "cifar10" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "cifar10", HERE.parents[1] / "benchmarks" / "quality" / "cifar10.py"
        )
        sys.modules["cifar10"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    found = sys.modules["cifar10"]
    if not found.DATA.is_dir():
        pytest.skip(f"the CIFAR-10 images and networks are not in {found.DATA}")
    return found
