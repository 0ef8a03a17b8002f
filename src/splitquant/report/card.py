"""The model card of a quantized folder: what was done and how to load it. The same input gives the same text."""

from __future__ import annotations

from collections.abc import Sequence

from splitquant.report.outcome import REPORT_NAME, Report
from splitquant.report.summary import by_outcome, total
from splitquant.sizes import shown_bytes

CARD_NAME = "README.md"
_FRONT_MATTER = "---\nlibrary_name: transformers\ntags:\n- splitquant\n- quantized\n---\n"


def original_card_name(taken: Sequence[str]) -> str:
    """Under which name the source's own card is carried over."""
    name, number = "README.original.md", 1
    while name in taken:
        number += 1
        name = f"README.original{number}.md"
    return name


def source_card(names: Sequence[str]) -> str | None:
    """Under which of these names the source's own card was carried over (None: it had none)."""
    cards = [name for name in names if name.startswith("README.original") and name.endswith(".md")]
    return max(cards, key=lambda name: (len(name), name), default=None)


def model_card(report: Report, original: str | None, original_name: str) -> str:
    """The card's text; the YAML head of the source's card, which hubs read, is kept."""
    whole = total(report)
    rows = "\n".join(
        f"| {row.what.replace('|', chr(92) + '|')} | {len(row.outcomes)} | {row.weights:,} | {shown_bytes(row.source_bytes)} | {shown_bytes(row.stored_bytes)} "
        f"| {row.bits_per_weight:.2f} | {row.sqnr} |"
        for row in [*by_outcome(report), whole]
    )
    source = f"The card of the model it was made from is in [{original_name}]({original_name}).\n" if original else ""
    notes = "".join(f"\nNote: {note}.\n" for note in report.notes)
    return f"""{_front_matter(original)}
# Quantized with splitquant

Load it with `pip install "splitquant[hf]"` and

```python
import splitquant

model, tokenizer = splitquant.load("path/to/this/folder", tokenizer=True)
```

Where splitquant is installed, `AutoModel.from_pretrained` and what is built on it read this folder as well. **Without splitquant
transformers only warns and starts from random weights.** For tools that read float weights only:
`splitquant dequantize path/to/this/folder -o float-folder`.
{notes}
## What was done

The weights in this folder are low-bit integer codes: each tensor is split by value into a few clusters, and each cluster has
its own linear grid. No calibration data was used. {source}
| tensors | number | weights | before | after | bits per weight | SQNR |
|---|---:|---:|---:|---:|---:|---:|
{rows}

SQNR is the energy of the weights over the energy of their errors. Every tensor's figures and checksums are in
[{REPORT_NAME}]({REPORT_NAME}).
"""


def _front_matter(original: str | None) -> str:
    if original is not None and original.startswith("---\n"):
        end = original.find("\n---", 4)
        if end > 0:
            return original[: end + 5]
    return _FRONT_MATTER
