"""The honest frontier: what every way to store weights keeps of real models, against the bits it stores.

    python -m benchmarks.quality.frontier [--data ../shared/data] [--docs]

SQNR of the weights for hundreds of schemes (plain grids per tensor, channel and group, NF4, HQQ, and every strategy of this
project), and what the model still does, for the best of each family at a few sizes. All are judged alike: the values that
the codes stand for go into the float model. --docs rewrites docs/results/frontier.md and its picture. HQQ comes with
requirements/benchmarks.txt; models whose data is missing are left out, and it is said. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.quality.frontier_measure import run
from benchmarks.quality.frontier_models import subjects
from benchmarks.quality.frontier_page import page, picture

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of trained models")
    parser.add_argument("--docs", action="store_true", help="rewrite docs/results/frontier.md and its picture")
    options = parser.parse_args()
    if find_spec("hqq") is None:
        raise SystemExit("hqq is not installed; it comes with: pip install -r requirements/benchmarks.txt")
    torch.set_num_threads(1)  # one scheme per thread
    found, missing = subjects(options.data)
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
    results = []
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for subject in found:
            started = time.perf_counter()
            results.append(run(subject, pool))
            print(f"{subject.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    text = page(results)
    print(text)
    if options.docs:
        folder = ROOT / "docs" / "results"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "frontier.md").write_text(text)
        picture(results, folder / "frontier.svg")


if __name__ == "__main__":
    main()
