"""Claim: quantizing a folder costs about what copying it costs, in less than 1 GiB, whatever the size of the model.

    python -m benchmarks.speed.quantize_costs_a_copy [--runs 5] [--eight-b]

Makes a 2.47 GB folder of Llama 3.2 1B shapes (and with --eight-b a 16 GB one) in a temporary folder on this disk.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.speed.llama_shaped import make
from benchmarks.speed.whole_process import in_turn, measure, median


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--eight-b", action="store_true", help="also the 8B shapes (needs 30 GB of disk)")
    parser.add_argument("--work", type=Path, help="where to put the folders (default: a temporary folder)")
    options = parser.parse_args()
    program = str(Path(sys.executable).with_name("splitquant"))
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        source, copy, output = work / "model", work / "copy", work / "quantized"
        make("1b", source)

        def clean() -> None:
            for folder in (copy, output):
                shutil.rmtree(folder, ignore_errors=True)

        commands = [["cp", "-r", str(source), str(copy)], [program, "quantize", str(source), "-o", str(output), "-q"]]
        rounds = in_turn(commands, options.runs, clean)
        ratios = [quantize.wall_seconds / cp.wall_seconds for cp, quantize in rounds]
        print(f"Llama-3.2-1B shapes, 2.47 GB bf16, {options.runs} pairs of runs, warm:")
        print(f"  cp -r        {median([cp.wall_seconds for cp, _ in rounds]):6.2f} s")
        print(
            f"  quantize     {median([q.wall_seconds for _, q in rounds]):6.2f} s wall, "
            f"{median([q.cpu_seconds for _, q in rounds]):.2f} s of processor, peak {max(q.peak_mib for _, q in rounds):.0f} MiB"
        )
        print(f"  ratio        {median(ratios):6.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
        if options.eight_b:
            clean()
            shutil.rmtree(source)
            make("8b", source)
            result = measure(commands[1])
            print(f"Llama-3.1-8B shapes, 16.1 GB bf16: {result.wall_seconds:.1f} s, peak {result.peak_mib:.0f} MiB")


if __name__ == "__main__":
    main()
