"""Products and whole models on packed weights against floats and other low-bit kernels, in one run.

    python -m benchmarks.speed.inference                             # matrices
    python -m benchmarks.speed.inference --model INT4DIR FLOATDIR    # a language model: prefill, decode, memory

Every figure is processor time of one thread, so that other work on the machine does not count; all take turns, and a
ratio is the median over the turns. Weights lie in more memory than caches hold, theirs and ours.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from splitquant import _native
from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.torch import PackedWeight

SHAPES = ((8192, 2048), (2048, 8192), (2048, 2048))
SPECS = {
    "INT4 k=4 (6 bits)": QuantSpec(),
    "INT4 plain group:32 (4.5 bits)": QuantSpec(bits=4, clusters=1, granularity="group:32"),
    "INT8 plain (8 bits)": EMBEDDING,
}
MEMORY = 80e6  # bytes of weights in turn
Call = Callable[[], object]


def rotated(calls: list[Call]) -> Call:
    """One call after the other, for ever."""
    turn = itertools.cycle(calls)

    def call() -> object:
        return next(turn)()

    return call


def copies(nbytes: float) -> int:
    return max(1, round(MEMORY / nbytes))


def seconds(call: Call, times: int) -> float:
    start = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - start) / times


def ours(weight: torch.Tensor, spec: QuantSpec, x: torch.Tensor, kernel: str) -> Call:
    first = PackedWeight.from_tensor(weight, spec)
    nbytes = sum(plane.nbytes for plane in first.planes().values())
    held = [copy.deepcopy(first) for _ in range(copies(nbytes))]

    def multiply(packed: PackedWeight) -> Call:
        def call() -> object:
            _native.set_product_kernel(kernel)
            return functional.linear(x, packed)

        return call

    return rotated([multiply(packed) for packed in held])


def float_linear(weight: torch.Tensor, x: torch.Tensor) -> Call:
    held = [weight.clone() for _ in range(copies(weight.nbytes))]
    return rotated([lambda w=w: functional.linear(x, w) for w in held])


def torch_int4(weight: torch.Tensor, x: torch.Tensor) -> Call:
    """PyTorch's own INT4 product, groups of 128."""
    rows, cols = weight.shape
    codes = torch.randint(0, 16, (rows, cols), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)  # noqa: SLF001 - they have no other name
    scales = torch.rand(cols // 128, rows, 2).bfloat16()
    held = [packed.clone() for _ in range(copies(packed.nbytes))]
    product = torch.ops.aten._weight_int4pack_mm_for_cpu  # noqa: SLF001
    return rotated([lambda p=p: product(x, p, 128, scales) for p in held])


def onnx_runtime(weight: torch.Tensor, x: torch.Tensor) -> Call:
    """ONNX Runtime's MatMulNBits, INT4 in groups of 32, INT8 activations (accuracy_level 4)."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    rows, cols = weight.shape
    rng, blocks = np.random.default_rng(0), cols // 32
    constants = {
        "B": rng.integers(0, 256, (rows, blocks, 16), dtype=np.uint8),
        "scales": rng.random((rows * blocks,), dtype=np.float32),
    }
    facts = {"K": cols, "N": rows, "bits": 4, "block_size": 32, "accuracy_level": 4}
    node = onnx.helper.make_node("MatMulNBits", ["A", "B", "scales"], ["Y"], domain="com.microsoft", **facts)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [info("A", onnx.TensorProto.FLOAT, list(x.shape))],
        [info("Y", onnx.TensorProto.FLOAT, [len(x), rows])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    count = copies(rows * cols * 0.625)
    sessions = [onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"]) for _ in range(count)]
    feed = {"A": x.float().numpy()}
    return rotated([lambda s=s: s.run(None, feed) for s in sessions])


def peers(weight: torch.Tensor, x: torch.Tensor) -> Iterator[tuple[str, Call]]:
    yield "torch bf16", float_linear(weight, x)
    yield "torch int4pack", torch_int4(weight, x)
    try:
        yield "ONNX Runtime", onnx_runtime(weight, x)
    except ImportError as error:
        print(f"without ONNX Runtime: {error}")


def matrices(tokens: list[int], kernels: list[str], turns: int) -> None:
    for rows, cols in SHAPES:
        weight = (torch.randn(rows, cols) * 0.02).bfloat16()
        for count in tokens:
            x = torch.randn(count, cols).bfloat16()
            calls = dict(peers(weight, x))
            for kernel in kernels:
                calls |= {f"{name}, {kernel}": ours(weight, spec, x, kernel) for name, spec in SPECS.items()}
            times: dict[str, list[float]] = {name: [] for name in calls}
            for call in calls.values():
                call()
            repeats = max(2, 24 // count)
            for _ in range(turns):
                for name, call in calls.items():
                    times[name].append(seconds(call, repeats))
            print(f"\n{rows} x {cols}, {count} tokens{'':12} ms   times as fast as " + ", ".join(dict(peers_of(times))))
            for name, found in times.items():
                ratios = [ratio(peer, found) for _, peer in peers_of(times)]
                print(
                    f"{name:44} {1e3 * statistics.median(found):8.3f}   " + "  ".join(f"{r:5.2f}" for r in ratios),
                    flush=True,
                )


def peers_of(times: dict[str, list[float]]) -> list[tuple[str, list[float]]]:
    return [(name, found) for name, found in times.items() if "," not in name]


def ratio(theirs: list[float], mine: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, mine, strict=True))


def model_figures(model: Any, ids: torch.Tensor, decoded: int) -> tuple[float, float]:
    """Seconds of a prefill and of the median token after it."""
    start = time.thread_time()
    out = model(ids, use_cache=True)
    prefill, times = time.thread_time() - start, []
    token, past = out.logits[:, -1:].argmax(-1), out.past_key_values
    for _ in range(decoded):
        start = time.thread_time()
        out = model(token, past_key_values=past, use_cache=True)
        times.append(time.thread_time() - start)
        token = out.logits[:, -1:].argmax(-1)
    return prefill, statistics.median(times)


@torch.no_grad()
def models(quantized: Path, plain: Path, prompts: list[int], turns: int) -> None:
    from transformers import AutoModelForCausalLM

    import splitquant

    packed = splitquant.load(quantized, dtype=torch.bfloat16)
    floats = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16)
    for length in prompts:
        ids = torch.randint(100, 1000, (1, length), generator=torch.Generator().manual_seed(0))
        pairs = [(model_figures(floats, ids, 16), model_figures(packed, ids, 16)) for _ in range(turns)]
        for what, at in (("prefill", 0), ("decode, a token", 1)):
            theirs, mine = [p[0][at] for p in pairs], [p[1][at] for p in pairs]
            print(
                f"prompt of {length}, {what:16} bf16 {1e3 * statistics.median(theirs):8.1f} ms, ours "
                f"{1e3 * statistics.median(mine):8.1f} ms: {ratio(theirs, mine):.2f} times as fast"
            )


def resident(folder: Path, *, packed: bool) -> None:
    """Resident memory of this process after loading one model and after 32 tokens."""
    from transformers import AutoModelForCausalLM

    import splitquant

    def megabytes() -> float:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * 4096 / 1e6

    load = splitquant.load if packed else AutoModelForCausalLM.from_pretrained
    before = megabytes()
    model = load(folder, dtype=torch.bfloat16)
    loaded = megabytes()
    with torch.no_grad():
        model_figures(model, torch.arange(100, 132)[None], 32)
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    print(
        f"{folder.name}: files {files:.0f} MB; resident {loaded - before:.0f} MB after loading, {megabytes() - before:.0f} after 32 tokens"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs=2, type=Path, metavar=("INT4DIR", "FLOATDIR"))
    parser.add_argument("--memory", type=Path, metavar="DIR", help="resident memory of one folder, ours or a float one")
    parser.add_argument("--tokens", type=int, nargs="*", default=[])
    parser.add_argument(
        "--kernels", nargs="*", default=_native.product_kernels()[-1:], choices=_native.product_kernels()
    )
    parser.add_argument("--turns", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, kernels {', '.join(asked.kernels)}")
    if asked.memory:
        resident(asked.memory, packed=(asked.memory / "splitquant_report.json").exists())
    elif asked.model:
        models(*asked.model, asked.tokens or [128, 512], asked.turns)
    else:
        matrices(asked.tokens or [1, 4, 16, 128], asked.kernels, asked.turns)


if __name__ == "__main__":
    main()
