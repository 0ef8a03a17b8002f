"""Claim: real ONNX models keep their results at INT4 once they are split, on real speech and real photos.

    python benchmarks/onnx_real_models.py [--data ../shared/data] [--docs]

Takes silero-vad (voice activity; a 60 s recording) and ultraface (faces; 7 photos) before and after; --docs writes the
tables to docs/results/onnx.md. Needs the data folder, pillow and onnxruntime.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import splitquant.onnx as sqo
from splitquant import QuantSpec

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "onnx.md"
BEGIN = "<!-- real models: begin -->"
END = "<!-- real models: end -->"

SCHEMES: list[tuple[str, QuantSpec | None]] = [
    ("float, split in 3", None),
    ("INT8 plain, channel", QuantSpec(bits=8, clusters=1)),
    ("INT4 plain, tensor", QuantSpec(bits=4, clusters=1, granularity="tensor")),
    (
        "INT4 k=3 kmeans, tensor (the paper)",
        QuantSpec(bits=4, layout="parallel", granularity="tensor", strategy="kmeans"),
    ),
    ("INT4 k=3 min_error, tensor", QuantSpec(bits=4, layout="parallel", granularity="tensor")),
    ("INT4 plain, channel", QuantSpec(bits=4, clusters=1)),
    ("INT4 k=3 min_error, channel", QuantSpec(bits=4, layout="parallel")),
    ("INT2 plain, channel", QuantSpec(bits=2, clusters=1)),
    ("INT2 k=3 min_error, channel", QuantSpec(bits=2, layout="parallel")),
]


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def speech(path: Path, recording: Path) -> np.ndarray:
    """The probability of speech in every frame of 512 samples."""
    with wave.open(str(recording)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    run = session(path)
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    found = []
    for start in range(0, len(samples) - 511, 512):
        frame = samples[start : start + 512]
        feeds = {"input": np.concatenate([context, frame])[None], "state": state, "sr": np.array(16000, np.int64)}
        probability, state = run.run(None, feeds)
        context = frame[-64:]
        found.append(float(probability.ravel()[0]))
    return np.array(found)


def faces(path: Path, photos: list[Path]) -> list[np.ndarray]:
    """The boxes found in every photo."""
    from PIL import Image

    run = session(path)
    name = run.get_inputs()[0].name
    found = []
    for photo in photos:
        with Image.open(photo) as image:
            pixels = np.asarray(image.convert("RGB").resize((320, 240)), np.float32)
        scores, boxes = run.run(None, {name: ((pixels - 127) / 128).transpose(2, 0, 1)[None]})
        found.append(best(boxes[0], scores[0, :, 1]))
    return found


def best(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Boxes above 0.7 that overlap no better one by more than 0.3."""
    kept: list[np.ndarray] = []
    for at in np.argsort(-scores):
        if scores[at] < 0.7:
            break
        if all(overlap(boxes[at], other) <= 0.3 for other in kept):
            kept.append(boxes[at])
    return np.array(kept).reshape(-1, 4)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    size = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(size / max(1e-9, np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - size))


def agreement(wanted: list[np.ndarray], got: list[np.ndarray]) -> tuple[int, int, int]:
    """How many of the float model's faces are found again (overlap 0.5), how many more, how many the float model has."""
    again = sum(any(overlap(box, other) >= 0.5 for other in b) for a, b in zip(wanted, got, strict=True) for box in a)
    more = sum(all(overlap(box, other) < 0.5 for other in a) for a, b in zip(wanted, got, strict=True) for box in b)
    return again, more, sum(map(len, wanted))


def converted(source: Path, spec: QuantSpec | None, folder: Path) -> tuple[Path, str]:
    out = folder / "out.onnx"
    done = sqo.split(source, out, force=True) if spec is None else sqo.quantize(source, out, spec, force=True)
    weights = sum(node.stored_bytes for node in done.report.converted)
    before = sum(node.source_bytes for node in done.report.converted)
    figures = done.report.figures
    sqnr = "exact" if spec is None else f"{figures.sqnr_db:.1f}"
    return out, f"{before / 1000:.0f} kB to {weights / 1000:.0f} kB | {sqnr}"


def measured(data: Path) -> str:
    lines = []
    recording = data / "silero-vad" / "test.wav"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in ("silero_vad_16k_op15.onnx", "silero_vad_op18_ifless.onnx"):
            path = data / "silero-vad" / source
            wanted = speech(path, recording)
            lines += [
                f"### silero-vad, `{source}`",
                "",
                f"{len(wanted)} frames of 32 ms; the float model hears speech in {np.mean(wanted > 0.5):.1%} of them.",
                "",
                "| weights | converted weights | weight SQNR, dB | frames decided alike | mean difference of probability |",
                "|---|---|---:|---:|---:|",
            ]
            for label, spec in SCHEMES:
                out, sizes = converted(path, spec, folder)
                got = speech(out, recording)
                alike = np.mean((got > 0.5) == (wanted > 0.5))
                lines.append(f"| {label} | {sizes} | {alike:.2%} | {np.abs(got - wanted).mean():.4f} |")
            lines.append("")
        path = data / "ultraface" / "version-RFB-320.onnx"
        photos = sorted((data / "ultraface" / "imgs").iterdir())
        boxes = faces(path, photos)
        lines += [
            "### ultraface, `version-RFB-320.onnx`",
            "",
            f"{len(photos)} photos; the float model finds {sum(map(len, boxes))} faces.",
            "",
            "| weights | converted weights | weight SQNR, dB | faces found again | faces beside these |",
            "|---|---|---:|---:|---:|",
        ]
        for label, spec in SCHEMES:
            out, sizes = converted(path, spec, folder)
            again, more, total = agreement(boxes, faces(out, photos))
            lines.append(f"| {label} | {sizes} | {again} of {total} | {more} |")
    return "\n".join(lines)


def put(page: Path, begin: str, end: str, text: str) -> None:
    """Write a section of a results page."""
    head = "# ONNX models: results\n\nMade by `benchmarks/onnx_real_models.py --docs` and `benchmarks/onnx_speed.py --docs`.\n"
    whole = page.read_text() if page.is_file() else head
    if begin not in whole:
        whole += f"\n{begin}\n{end}\n"
    before, after = whole.split(begin)[0], whole.split(end)[1]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--docs", action="store_true", help="write docs/results/onnx.md")
    options = parser.parse_args()
    if not (options.data / "ultraface").is_dir():
        sys.exit(f"{options.data}: the models and recordings are not there; give their folder with --data")
    text = "## Real models\n\n" + measured(options.data)
    print(text)
    if options.docs:
        put(PAGE, BEGIN, END, text)


if __name__ == "__main__":
    main()
