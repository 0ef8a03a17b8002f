"""The page of ONNX results, of which every benchmark writes its own section."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "onnx.md"
HEAD = "# ONNX models: results\n\nEvery section is written by the command that it names.\n"


def put(section: str, text: str) -> None:
    """Write a section."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    whole = PAGE.read_text() if PAGE.is_file() else HEAD
    if begin not in whole:
        whole += f"\n{begin}\n{end}\n"
    before, after = whole.split(begin)[0], whole.split(end)[1]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}")
