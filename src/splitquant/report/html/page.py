"""The HTML file: a page with its style, its scripts and its data, and a policy under which it can load nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import Any

from splitquant.report.html.content import Content, content_dict

SCRIPTS = ("data.js", "figures.js", "charts.js", "overview.js", "table.js", "tensor.js", "main.js")
_HOME = files("splitquant.report.html")


def page(content: Content) -> str:
    """The text of the file, which is to be stored as UTF-8; the same content gives the same text.

    Args:
        content: what it shows. Names may hold anything: they are text in it, never markup and never script.
    """
    library = _read("uplot/uPlot.iife.min.js")
    script = "(() => {\n'use strict';\n" + "".join(_read(f"page/{name}") for name in SCRIPTS) + "})();\n"
    style = _read("uplot/uPlot.min.css") + _read("page/style.css")
    parts = {
        "POLICY": (
            f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        "TITLE": _text(f"{content.destination}: splitquant report"),
        "STYLE": style,
        "LICENSE": _text(_read("uplot/LICENSE")),
        "DATA": _embedded(content_dict(content)),
        "LIBRARY": library,
        "SCRIPT": script,
    }
    pieces = _read("page/page.html").split(
        "%%"
    )  # text, name, text, name, ...: what is put in is not looked through again
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def _read(name: str) -> str:
    return _HOME.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _text(text: str) -> str:
    """Text as it may stand in an element; a lone surrogate, which no file may hold, becomes a reference too."""
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode("ascii")


def _embedded(data: Any) -> str:
    """JSON as it may stand in a script element: no tag can begin or end in it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
