"""The rooms of the package and the arrows between them, read from the sources: printed here, held by tests/test_architecture.py.

python .ci/import_graph.py            rooms, whom each imports, circles between modules
python .ci/import_graph.py --modules  the same for every module
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = "splitquant"
SRC = Path(__file__).resolve().parents[1] / "src" / PACKAGE


def modules(src: Path = SRC) -> dict[str, Path]:
    """Every module of the package by its dotted name below it ("" is the package itself)."""
    names = {}
    for file in sorted(src.rglob("*.py")):
        parts = file.relative_to(src).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = file
    return names


def imported(source: str) -> Iterator[tuple[str, str]]:
    """The (module, name) pairs that a source imports, wherever the import stands; name is "" for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((base, alias.name) for alias in node.names)


def own_imports(source: str, known: Mapping[str, object]) -> set[str]:
    """The modules of the package that a source imports."""
    found = set()
    for module, name in imported(source):
        if module != PACKAGE and not module.startswith(f"{PACKAGE}."):
            continue
        inner = module.removeprefix(PACKAGE).lstrip(".")
        deeper = f"{inner}.{name}".lstrip(".")
        found.add(deeper if deeper in known else inner)
    return found


def strangers(source: str) -> set[str]:
    """The packages outside of this one and of the standard library that a source imports; relative imports count too."""
    tops = {module.split(".")[0] if not module.startswith(".") else module for module, _ in imported(source)}
    return {top for top in tops if top != PACKAGE and top not in sys.stdlib_module_names}


def room(module: str) -> str:
    """The room a module is in: its folder, or itself where it lies at the top."""
    return module.split(".", maxsplit=1)[0] or "__init__"


def graph(src: Path = SRC) -> dict[str, set[str]]:
    """Which modules each module imports."""
    known = modules(src)
    return {name: own_imports(file.read_text("utf-8"), known) - {name} for name, file in known.items()}


def rooms(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Which rooms each room imports."""
    found: dict[str, set[str]] = {}
    for module, others in arrows.items():
        found.setdefault(room(module), set()).update(room(other) for other in others)
    return {name: others - {name} for name, others in found.items()}


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of more than one)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def main() -> None:
    """Print the graph."""
    arrows = graph()
    shown = arrows if "--modules" in sys.argv else rooms(arrows)
    for name, others in sorted(shown.items()):
        print(f"{name or '__init__':<28} -> {', '.join(sorted(other or '__init__' for other in others))}")  # noqa: T201
    for what, of in (("rooms", rooms(arrows)), ("modules", arrows)):
        groups = circles(of)
        print(f"circles between {what}: {len(groups)}" + "".join(f"\n  {' <-> '.join(g)}" for g in groups))  # noqa: T201


if __name__ == "__main__":
    main()
