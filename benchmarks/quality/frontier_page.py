"""The page and the picture of the frontier: every sentence about who wins is made of the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.quality.frontier_measure import BUDGETS, JUDGED, Point, Results
from benchmarks.quality.frontier_schemes import FREE, PEERS, PLAIN, PLANNED, SPLIT, WEIGHTINGS

CONTEST = (PLAIN, PEERS, SPLIT, FREE)
FORMS = {"cosine": ".4f", "perplexity": ".2f", "top-1": ".1f"}
DB_PER_BIT = 6.02
EQUAL = {"cosine": 0.0005, "perplexity": 0.005, "top-1": 0.5}
MEANINGS = (
    (PLAIN, "one linear grid per tensor, channel, or 32, 64 or 128 weights of a row, with or without clipping"),
    (PEERS, "NF4 with and without double quantization (torchao's code), and HQQ with its own optimizer"),
    (SPLIT, "k linear grids: `min_error`, `kmeans` (the paper), `magnitude`, `residual`"),
    (FREE, "`lloyd`: a table of the best 2**bits levels per tensor, times a scale per channel or group"),
)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, its first column to the left."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def words(items: Sequence[str]) -> str:
    """Items as a list in a sentence."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def scored(results: Results, score: float | None) -> str:
    """A score of this model, as text."""
    return "" if score is None else format(score, FORMS[results.subject.measure])


def ranked(results: Results, budget: float) -> list[Point]:
    """The best of each kind within a budget, best SQNR first."""
    found = [results.best(budget, kind=kind) for kind in CONTEST]
    return sorted((point for point in found if point is not None), key=lambda point: -point.sqnr_db)


def ahead(results: Results, budget: float) -> str:
    """The kind whose model is better than those of all others by more than noise; "" where there is none."""
    points = [point for point in ranked(results, budget) if point.score is not None]
    if len(points) < 2:
        return ""
    sign = 1 if results.subject.higher else -1
    points.sort(key=lambda point: -sign * point.score)  # type: ignore[operator]
    first, second = points[0], points[1]
    gap = abs(first.score - second.score)  # type: ignore[operator]
    return first.scheme.kind if gap > noise_of(results) else ""


def by_winner(winners: Sequence[str], sizes: Sequence[float]) -> str:
    """Who wins at which sizes, as text."""
    names = dict.fromkeys(winner for winner in winners)
    parts = []
    for name in sorted(names, key=lambda name: (name == "", winners.index(name))):
        at = [f"{size:g}" for winner, size in zip(winners, sizes, strict=True) if winner == name]
        parts.append(f"{name or 'no clear winner'} at {words(at)}")
    return "; ".join(parts)


def versus(results: Sequence[Results], budget: float, kind: str) -> str:
    """How much more SQNR a kind has than the best plain grid of the same size: from the worst to the best model."""
    found = []
    for one in results:
        mine, plain = one.best(budget, kind=kind), one.best(budget, kind=PLAIN)
        if mine is not None and plain is not None:
            found.append(mine.sqnr_db - plain.sqnr_db)
    return f"{min(found):+.2f} to {max(found):+.2f}" if found else ""


def verdict(results: Sequence[Results]) -> str:
    """Where plain group-wise wins, and where a split does."""
    text = "## Who wins at equal stored bits\n\n"
    winners = [[ranked(one, budget)[0] for budget in BUDGETS] for one in results]
    count = Counter(point.scheme.kind for row in winners for point in row)
    total = count.total()
    text += (
        f"One scheme for all weights of a model; of each kind the best that stores at most so many bits. In {total} comparisons\n"
        f"({len(results)} models, {len(BUDGETS)} sizes) the highest SQNR is that of "
        + words([f"{kind} in {count[kind]}" for kind in sorted(CONTEST, key=lambda kind: -count[kind])])
        + ".\n\n"
    )
    families = Counter(point.scheme.family for row in winners for point in row)
    text += "The winners are " + words([f"{name} ({n})" for name, n in families.most_common()]) + ".\n\n"
    for one, row in zip(results, winners, strict=True):
        text += f"- **{one.subject.name}**, SQNR: {by_winner([point.scheme.kind for point in row], BUDGETS)}.\n"
        text += f"  {one.subject.measure.capitalize()}: {by_winner([ahead(one, size) for size in JUDGED], JUDGED)}.\n"
    duels = [
        (size, split.sqnr_db, plain.sqnr_db)
        for one in results
        for size in BUDGETS
        for split, plain in [(one.best(size, kind=SPLIT), one.best(size, kind=PLAIN))]
        if split is not None and plain is not None
    ]
    few, many = ([(s, p) for size, s, p in duels if (size < 5) == small] for small in (True, False))
    text += (
        f"\nA split against plain grids alone: below 5 bits it has the higher SQNR in {sum(s > p for s, p in few)} of {len(few)} comparisons,\n"
        f"from 5 bits on in {sum(s > p for s, p in many)} of {len(many)}.\n"
        "How many dB each kind is above (below) the best plain grid of the same size, from the worst to the best model;\n"
        "*planner*: a spec of its own for every tensor, chosen as [the size planner](../budget.md) does.\n\n"
    )
    kinds = (PEERS, SPLIT, FREE, PLANNED)
    rows = [(f"{size:g}", *(versus(results, size, kind) for kind in kinds)) for size in BUDGETS]
    text += markdown(("bits per weight", *kinds), rows)
    text += "\nThe planner uses all of a size, where one scheme for all leaves up to half a bit of it. By what the models still do:\n\n"
    return text + "".join(f"- {planner_verdict(results, weighting)}\n" for weighting in WEIGHTINGS)


def planner_verdict(results: Sequence[Results], weighting: str) -> str:
    """How often a plan leaves a better model than the best of all single schemes."""
    count: Counter[str] = Counter()
    for one in results:
        sign = 1 if one.subject.higher else -1
        for size in JUDGED:
            mine = one.best(size, family=f"planner, {weighting}")
            rest = [one.best(size, family=family) for family in one.families if not family.startswith(PLANNED)]
            scores = [sign * p.score for p in rest if p is not None and p.score is not None]
            if mine is not None and mine.score is not None and scores:
                gap = sign * mine.score - max(scores)
                count["equal" if abs(gap) <= noise_of(one) else "better" if gap > 0 else "worse"] += 1
    return (
        f"planned by {weighting} error: better than the best family in {count['better']} of {count.total()} cases, "
        f"no different in {count['equal']}, worse in {count['worse']}"
    )


def noise_of(one: Results) -> float:
    """The difference of two scores that counts as none."""
    return EQUAL[one.subject.measure] * (1 if one.subject.higher else one.subject.score_float)


def polish_table(results: Sequence[Results]) -> str:
    """What polishing gains, spec by spec."""
    widths = (2, 3, 4, 5, 6)
    rows = []
    for one in results:
        plain = {
            (p.scheme.spec.bits, p.scheme.spec.clusters, p.scheme.spec.granularity): p.sqnr_db
            for p in one.stored
            if p.scheme.family == "min_error, no polish"
        }
        gains: dict[int, list[float]] = {}
        for p in one.stored:
            if p.scheme.family == "min_error":
                spec = p.scheme.spec
                gains.setdefault(spec.bits, []).append(p.sqnr_db - plain[spec.bits, spec.clusters, spec.granularity])
        rows.append((one.subject.name, *(f"{sum(g) / len(g):+.2f} ({min(g):+.2f})" for g in map(gains.get, widths))))
    return (
        "## What polishing gains\n\ndB of SQNR for `min_error` by bits, mean (and least) over k = 2, 4 and 8, per tensor and per channel.\n\n"
        + markdown(("model", *(f"INT{bits}" for bits in widths)), rows)
    )


def layers_table(results: Sequence[Results]) -> str:
    """INT4 layers with one grid per tensor."""
    rows = []
    for first in results[0].layers:
        spec = first.scheme.spec
        mine = [(one, next(p for p in one.layers if p.scheme.spec == spec)) for one in results]
        name = first.scheme.family + (f", k={spec.clusters}" if spec.clusters > 1 else "")
        cells = [f"{p.sqnr_db:.1f} ({scored(one, p.score)})" for one, p in mine]
        rows.append((name, f"{spec.clusters * spec.bits}", *cells))
    columns = ("layers", "bits", *(f"{one.subject.name}, {one.subject.measure}" for one in results))
    text = (
        "## Where one grid per tensor is all there is\n\n"
        "Many NPUs have nothing else. The split is k INT4 layers there, which take k * 4 bits: SQNR in dB (and the score). INT4\n"
        "where not said.\n\n" + markdown(columns, rows) + "\n"
    )
    for symmetric in (False, True):
        beaten, better = 0, []
        for one in results:
            mine = [p for p in one.layers if p.scheme.spec.symmetric == symmetric]
            eight = next(p for p in mine if p.scheme.spec.bits == 8)
            plain = next(p for p in mine if p.scheme.spec.bits == 4 and p.scheme.spec.clusters == 1)
            two = [p for p in mine if p.scheme.spec.bits == 4 and p.scheme.spec.clusters == 2]
            best = max(two, key=lambda p: p.sqnr_db)
            beaten += best.sqnr_db < eight.sqnr_db
            better.append(best.sqnr_db - plain.sqnr_db)
        grids = "symmetric" if symmetric else "asymmetric"
        text += (
            f"With {grids} grids the best two INT4 layers are {min(better):.1f} to {max(better):.1f} dB above plain INT4; plain INT8, where a target\n"
            f"has it, is better than they are in {beaten} of {len(results)} models, with the same bits and one layer.\n"
        )
    return text


def model_tables(one: Results) -> str:
    """The best of each kind, and all families, for one model."""
    subject = one.subject
    weights = sum(weight.numel() for weight in subject.weights.values())
    text = (
        f"## {subject.name}\n\n{weights:,} weights in {len(subject.layers)} layers; {subject.measure} of the float model:\n"
        f"{scored(one, subject.score_float)}. The best of each kind: bits and SQNR in dB"
        f" ({subject.measure} at {words([f'{size:g}' for size in JUDGED])}).\n\n"
    )
    kinds = (*CONTEST, PLANNED)
    rows = []
    for size in BUDGETS:
        cells = []
        for kind in kinds:
            p = one.best(size, kind=kind)
            judged = "" if p is None or size not in JUDGED else f" ({scored(one, p.score)})"
            cells.append("" if p is None else f"{p.scheme.name}<br>{p.bits:.2f} bits, {p.sqnr_db:.2f}{judged}")
        rows.append((f"{size:g}", *cells))
    text += markdown(("at most", *kinds), rows)
    text += f"\nThe best of each family: SQNR in dB ({subject.measure}).\n\n"
    rows = []
    for family in one.families:
        cells = []
        for size in BUDGETS:
            p = one.best(size, family=family)
            judged = "" if p is None or size not in JUDGED else f" ({scored(one, p.score)})"
            cells.append("" if p is None else f"{p.sqnr_db:.2f}{judged}")
        rows.append((family, *cells))
    return text + markdown(("at most", *(f"{size:g}" for size in BUDGETS)), rows)


def page(results: Sequence[Results]) -> str:
    """The page."""
    text = (
        "# Quality against stored bits\n\nMade by `python -m benchmarks.quality.frontier --docs` (with `pip install -r requirements/benchmarks.txt`).\n\n"
        f"{sum(p.scheme.kind != PLANNED for p in results[0].stored)} ways to store the weights of {words([one.subject.name for one in results])}:\n\n"
    )
    text += "".join(f"- **{kind}**: {meaning}.\n" for kind, meaning in MEANINGS)
    text += (
        "\nBits per weight count everything that is stored: codes, cluster ids, scales, zero_points, levels. Plain grids and NF4 have\n"
        "float16 scales (and zero_points of the codes' width); ours are counted as our files hold them, for these float32 models\n"
        "with float32 scales per channel and bfloat16 scales per group. All linear and convolution layers are quantized, embeddings\n"
        "and vocabulary heads are not. Every scheme is judged in the same way: the values its codes stand for go into the float\n"
        "model. The scores: cosine of 300 sentence embeddings to those of the float model; perplexity; top-1 in percent of 1,000\n"
        "images. Differences below 0.0005 of cosine, 0.5 % of perplexity and half a point of top-1 count as none. craftgpt has\n"
        "at most 256 different values per matrix, and tensors of a few thousand weights (stories260K, the ResNets) make tables and\n"
        "scales look expensive.\n\nThe picture: left the SQNR, less 6.02 dB for each stored bit, so that equal efforts are level; each line is the upper hull of\n"
        "its family. Right what the model still does, at the sizes where it was judged.\n\n![SQNR and score against stored bits](frontier.svg)\n\n"
    )
    sections = [verdict(results), layers_table(results), polish_table(results), *map(model_tables, results)]
    return text + "\n".join(sections)


def picture(results: Sequence[Results], file: Path) -> None:
    """SQNR and score against stored bits, a row per model, a line per family."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "splitquant"
    figure, grid = plt.subplots(len(results), 2, figsize=(13, 4.6 * len(results)), squeeze=False)
    for (left, right), one in zip(grid, results, strict=True):
        cosine = one.subject.measure == "cosine"
        for family, style in styles(one).items():
            mine = [p for p in one.stored if p.scheme.family == family]
            front = front_of(mine)
            left.plot([p.bits for p in front], [p.sqnr_db - DB_PER_BIT * p.bits for p in front], **style)
            judged = sorted({(p.bits, p.score) for p in mine if p.score is not None})
            right.plot([bits for bits, _ in judged], [1 - y if cosine else y for _, y in judged], **style)
        left.set(xlim=(1.9, 8.4), ylabel=f"SQNR in dB, less {DB_PER_BIT} dB for each stored bit")
        name = {"cosine": "1 - cosine", "perplexity": "perplexity", "top-1": "top-1, %"}[one.subject.measure]
        right.set(xlim=(1.9, 6.5), ylabel=name, yscale="linear" if one.subject.measure == "top-1" else "log")
        if not cosine:
            right.axhline(one.subject.score_float, color="gray", linestyle=":")
        for axes in (left, right):
            axes.set(title=one.subject.name, xlabel="stored bits per weight")
            axes.grid(alpha=0.3)
    right_of_all = grid[0, 1]
    right_of_all.legend(*grid[0, 0].get_legend_handles_labels(), fontsize="x-small", ncols=2)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def styles(one: Results) -> dict[str, dict[str, object]]:
    """A look for each family: its kind by colour, itself by shade and marker."""
    import matplotlib as mpl

    maps = {PLAIN: "Blues", PEERS: "Greens", SPLIT: "Reds", FREE: "Purples", PLANNED: "Greys"}
    kinds = {p.scheme.family: p.scheme.kind for p in one.stored}
    looks: dict[str, dict[str, object]] = {}
    for family, kind in kinds.items():
        peers = [name for name, of in kinds.items() if of == kind]
        at = peers.index(family)
        looks[family] = {
            "color": mpl.colormaps[maps[kind]]((1.0, 0.6)[at] if kind == PLANNED else 0.95 - 0.55 * at / len(peers)),
            "marker": "*P"[at] if kind == PLANNED else "os^Dvx"[at],
            "linewidth": 1,
            "markersize": 5,
            "label": family,
        }
    return looks


def front_of(points: Iterable[Point]) -> list[Point]:
    """The corners of the upper hull: what no mixture of two others beats."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bits, -p.sqnr_db)):
        if front and point.sqnr_db <= front[-1].sqnr_db:
            continue
        while len(front) > 1 and slope(front[-1], point) >= slope(front[-2], front[-1]):
            front.pop()
        front.append(point)
    return front


def slope(low: Point, high: Point) -> float:
    """Between two points, in dB per bit."""
    return (high.sqnr_db - low.sqnr_db) / max(high.bits - low.bits, 1e-9)
