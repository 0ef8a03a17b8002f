"""Real ONNX models and what is asked of them: speech in a recording, faces in photos, classes of images, sentences, stories."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]
STORIES, TOKENS, STEP = 40, 256, 64


class MissingError(Exception):
    """A model or its inputs are not here; the message says which."""


@dataclass(frozen=True)
class Task:
    """A model, and what it is judged by.

    name, measure: the head of its column. run: what a session of it, or of what was made of it, gives for the real inputs.
    cell: that as text, beside what the float model gives.
    """

    name: str
    measure: str
    model: Path
    run: Callable[[Any], Any]
    cell: Callable[[Any, Any], str]


def session(path: Path, *, float_activations: bool = False) -> Any:
    """A model in ONNX Runtime on one thread; its low-bit MatMul kernels take INT8 activations unless told otherwise."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if float_activations:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def here(path: Path) -> Path:
    """The path; MissingError where there is nothing."""
    if not path.exists():
        raise MissingError(f"{path.name} is not in {path.parent}")
    return path


def tasks(data: Path, work: Path) -> tuple[list[Task], list[str]]:
    """All tasks whose files are below `data` or installed, and a sentence for each of the others; exports go to `work`."""
    found, missing = [], []
    makers: dict[str, Callable[[], Task]] = {
        "silero-vad 16k": lambda: speech(data, "silero_vad_16k_op15.onnx", "silero-vad 16k"),
        "silero-vad ifless": lambda: speech(data, "silero_vad_op18_ifless.onnx", "silero-vad ifless"),
        "ultraface RFB-320": lambda: faces(data),
        "ResNet-20": lambda: images("ResNet-20", data, work),
        "ResNet-56": lambda: images("ResNet-56", data, work),
        "all-MiniLM-L6-v2": lambda: sentences(work),
        "stories260K": lambda: stories(data, work),
    }
    for name, make in makers.items():
        try:
            found.append(make())
        except (MissingError, ImportError) as error:
            missing.append(f"{name} is left out: {error}.")
    return found, missing


def speech(data: Path, file: str, name: str) -> Task:
    """The probability of speech in every frame of 512 samples of a recording."""
    model, recording = here(data / "silero-vad" / file), here(data / "silero-vad" / "test.wav")

    def run(model: Any) -> Array:
        with wave.open(str(recording)) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16).astype(np.float32) / 32768
        state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
        found = []
        for start in range(0, len(samples) - 511, 512):
            frame = samples[start : start + 512]
            feeds = {"input": np.concatenate([context, frame])[None], "state": state, "sr": np.array(16000, np.int64)}
            probability, state = model.run(None, feeds)
            context = frame[-64:]
            found.append(float(probability.ravel()[0]))
        return np.array(found)

    measure = "frames of a recording decided like the float model, %"
    return Task(name, measure, model, run, lambda wanted, got: f"{100 * np.mean((got > 0.5) == (wanted > 0.5)):.2f}")


def faces(data: Path) -> Task:
    """The boxes found in every photo."""
    from PIL import Image

    model, photos = here(data / "ultraface" / "version-RFB-320.onnx"), here(data / "ultraface" / "imgs")

    def run(model: Any) -> list[Array]:
        name = model.get_inputs()[0].name
        found = []
        for photo in sorted(photos.iterdir()):
            with Image.open(photo) as image:
                pixels = np.asarray(image.convert("RGB").resize((320, 240)), np.float32)
            scores, boxes = model.run(None, {name: ((pixels - 127) / 128).transpose(2, 0, 1)[None]})
            found.append(best(boxes[0], scores[0, :, 1]))
        return found

    def cell(wanted: list[Array], got: list[Array]) -> str:
        pairs = list(zip(wanted, got, strict=True))
        again = sum(any(overlap(box, other) >= 0.5 for other in b) for a, b in pairs for box in a)
        more = sum(all(overlap(box, other) < 0.5 for other in a) for a, b in pairs for box in b)
        return f"{again} of {sum(map(len, wanted))}" + (f", {more} more" if more else "")

    return Task(
        "ultraface RFB-320",
        "the float model's faces found in photos, and faces that it does not find",
        model,
        run,
        cell,
    )


def best(boxes: Array, scores: Array) -> Array:
    """Boxes above 0.7 that overlap no better one by more than 0.3."""
    kept: list[Array] = []
    for at in np.argsort(-scores):
        if scores[at] < 0.7:
            break
        if all(overlap(boxes[at], other) <= 0.3 for other in kept):
            kept.append(boxes[at])
    return np.array(kept).reshape(-1, 4)


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes."""
    size = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(size / max(1e-9, np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - size))


def images(name: str, data: Path, work: Path) -> Task:
    """The classes of labelled test images."""
    from benchmarks.quality import cifar10, onnx_exports

    folder = data / "cifar10"
    for file in (cifar10.NETWORKS[name][0], "cifar10_test1000.npz"):
        here(folder / file)
    model = onnx_exports.resnet(name, folder, work / f"{name}.onnx")
    pixels, labels = (tensor.numpy() for tensor in cifar10.images(folder))

    def run(model: Any) -> float:
        batches = (
            model.run(None, {"image": pixels[at : at + cifar10.BATCH]})[0]
            for at in range(0, len(pixels), cifar10.BATCH)
        )
        return float(np.mean(np.concatenate(list(batches)).argmax(1) == labels))

    return Task(name, "top-1 of labelled images, %", model, run, lambda _, got: f"{100 * got:.1f}")


def sentences(work: Path) -> Task:
    """Embeddings of sentences by all-MiniLM-L6-v2."""
    from transformers import AutoTokenizer

    from benchmarks.quality import minilm, onnx_exports

    model = onnx_exports.encoder(minilm.MODEL, work / "minilm.onnx")
    tokenizer, text = AutoTokenizer.from_pretrained(minilm.MODEL), minilm.real_sentences()

    def run(model: Any) -> Array:
        found = []
        for start in range(0, len(text), 32):
            batch = tokenizer(text[start : start + 32], padding=True, truncation=True, return_tensors="np")
            mask = batch["attention_mask"].astype(np.int64)
            hidden = model.run(None, {"input_ids": batch["input_ids"].astype(np.int64), "attention_mask": mask})[0]
            pooled = (hidden * mask[..., None]).sum(1)
            found.append(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
        return np.concatenate(found)

    cell = lambda wanted, got: f"{(wanted * got).sum(1).mean():.4f}"  # noqa: E731
    return Task("all-MiniLM-L6-v2", "cosine of sentence embeddings to the float model's", model, run, cell)


def stories(data: Path, work: Path) -> Task:
    """The perplexity of stories, read in steps through the cache of keys and values."""
    from transformers import AutoTokenizer

    from benchmarks.quality import onnx_exports

    folder = here(data / "stories260K" / "hf-fp32")
    every = json.loads(here(data / "tinystories-text" / "tinystories_1000.json").read_text())
    model, shape, count = onnx_exports.decoder(folder, work / "stories.onnx")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [np.array([tokenizer(story).input_ids[:TOKENS]]) for story in every if story.isascii()][:STORIES]

    def run(model: Any) -> float:
        loss = []
        for ids in texts:
            past, rows = [np.zeros(shape, np.float32)] * count, []
            for start in range(0, ids.shape[1], STEP):
                step = ids[:, start : start + STEP]
                mask = np.ones((1, start + step.shape[1]), np.int64)
                caches = {f"past{n}": cache for n, cache in enumerate(past)}
                logits, *past = model.run(None, {"input_ids": step, "attention_mask": mask, **caches})
                rows.append(logits[0])
            logits = np.concatenate(rows)[:-1].astype(np.float64)
            logits -= logits.max(1, keepdims=True)
            loss.append(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), ids[0, 1:]])
        return float(np.exp(np.concatenate(loss).mean()))

    return Task(
        "stories260K",
        "perplexity of stories, with past key values (lower is better)",
        model,
        run,
        lambda _, got: f"{got:.2f}",
    )
