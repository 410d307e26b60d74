"""The atlas: one self-contained page on which every language of a run, or of runs compared, is found, placed and opened."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson
from markupsafe import Markup

from emma.tools.charts.world import HEIGHT, WIDTH, outlines, project
from emma.tools.evaluation import measures
from emma.tools.evaluation.measures import Metric, metric
from emma.tools.languages.codes import CATEGORIES
from emma.tools.languages.places import SOURCES, coastlines, place
from emma.tools.report.atlas import atlas, facts, heldout_cells
from emma.tools.report.page import render
from emma.tools.report.samples import samples_of
from emma.tools.report.verdicts import Judged

__all__ = ["atlas_page"]

_SAME_SCRIPT = {"Hans": "Hani", "Japn": "Jpan", "Kore": "Hang", "Hrkt": "Jpan"}
# A cell is a list, since there are thousands: where, base, value, difference, low, high, p, verdict, n.
_CELL = ("language", "base", "value", "difference", "low", "high", "adjusted", "verdict", "n")


def atlas_page(judged: Judged, report: str) -> str:
    """The atlas as HTML.

    Args:
        judged: the page's runs and verdicts, as on the report.
        report: relative address of the report.
    """
    runs = judged.runs
    found = [atlas(run, judged) for run in runs]
    data = _data(found, judged)
    return render(
        "atlas.html.j2",
        scripts=("sort.js", "filter.js", "scroll.js", "atlas.js"),
        styles=("style.css", "atlas.css"),
        names=[run.name for run in runs],
        report=report,
        verdicts=judged.tally,
        sources=SOURCES,
        languages=len(data["languages"]),
        placed=sum("x" in row for row in data["languages"]),
        width=WIDTH,
        height=HEIGHT,
        land=Markup(outlines(coastlines())),
        # Inside a script element only `<` could end it.
        data=Markup(orjson.dumps(data).decode().replace("<", "\\u003c")),
    )


def _data(found: Sequence[Mapping[str, Any]], judged: Judged) -> dict[str, Any]:
    """What the page's script reads: see the comments in atlas.js."""
    views = [f"{run.name} against its base" for run in judged.runs]
    views += [f"{name} against {judged.runs[0].name}" for name in judged.against]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    branches: dict[str, list[str]] = {}
    used: dict[str, dict[str, Any]] = {}
    for view, entry in _entries(found, judged):
        code = entry["code"]
        known = place(code)
        script = code.partition("_")[2] or entry.get("script", "")
        key = known.of, _SAME_SCRIPT.get(script, script)
        row = rows.setdefault(key, _facts(entry, branches))
        row["codes"].setdefault(code, entry["name"])
        for cell in entry.get("heldout", ()):
            if cell["kind"] == "monolingual" and "seen_by_base" in cell:
                row["seen"] = cell["seen_by_base"]
            title = "Held-out text" + ("" if cell["kind"] == "monolingual" else f", {cell['kind']}")
            _put(
                row,
                used,
                f"heldout/{cell['kind']}",
                title,
                "bits_per_byte",
                view,
                {**cell, "value": cell["trained"]},
            )
        for cell in entry.get("benchmarks", ()):
            _put(
                row,
                used,
                cell["benchmark"],
                measures.benchmark(cell["benchmark"]).name,
                cell["metric"],
                view,
                cell,
            )
        for name in ("mix", "tokenizer"):
            if name in entry:
                row.setdefault(name, {})[str(view)] = entry[name]
    order = sorted(used, key=lambda name: (not name.startswith("heldout/monolingual"), measures.place(name)))
    mixed = {entry["code"] for one in found for entry in one["languages"] if "mix" in entry}
    for row in rows.values():
        # A language goes by its code in the mix, or else by one that names its script.
        codes = sorted(row["codes"], key=lambda code: (code not in mixed, "_" not in code, code))
        names = dict.fromkeys(row["codes"][code] for code in codes)
        row["codes"], (row["name"], *row["also"]) = codes, names
    shown = sorted(rows.values(), key=lambda row: re.sub(r"\W", "", row["name"]).casefold())
    for row in shown:
        seen = row.get("seen")
        row["seen"] = "" if seen is None else "seen by the base" if seen else "not seen by the base"
        row["mixed"] = "in the mix" if "mix" in row else "not in the mix"
        row["cells"] = {str(order.index(name)): cells for name, cells in row["cells"].items()}
    samples_of(judged, shown)
    return {
        "views": views,
        "measures": [used[name] for name in order],
        "categories": CATEGORIES,
        "branches": branches,
        "languages": shown,
    }


def _entries(found: Sequence[Mapping[str, Any]], judged: Judged) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each view's entries: those of the runs, then the held-out text of each other run against the first's."""
    for view, one in enumerate(found):
        for entry in one["languages"]:
            yield view, entry
    for view, gains in enumerate(judged.against.values(), len(found)):
        for code, cell in heldout_cells([asdict(row) for row in gains.languages]):
            yield view, {**facts(code), "heldout": [cell]}


def _facts(entry: Mapping[str, Any], branches: dict[str, list[str]]) -> dict[str, Any]:
    """A language's row before its results; adds its branches to those of the page."""
    known = place(entry["code"])
    above = ""
    for code, name in known.branches:
        branches.setdefault(code, [name, above])
        above = code
    row: dict[str, Any] = {
        "codes": {},
        "script": entry.get("script", ""),
        "family": entry.get("family", ""),
        "category": entry.get("category", ""),
        "branch": above,
        "cells": {},
    }
    if "speakers" in entry:
        row["speakers"] = entry["speakers"]
    if known.latitude is not None and known.longitude is not None:
        row["x"], row["y"] = (round(v, 1) for v in project(known.longitude, known.latitude))
        row["of"] = known.of
    return row


def _put(
    row: dict[str, Any],
    used: dict[str, dict[str, Any]],
    name: str,
    title: str,
    key: str,
    view: int,
    cell: Mapping[str, Any],
) -> None:
    """Adds a result to a language's row; that on text with English comes first."""
    of: Metric = metric(key)
    used.setdefault(
        name, {"title": title, "unit": of.name, "sign": of.sign, "factor": of.factor, "digits": of.digits}
    )
    low, high = cell.get("interval", (None, None))
    values = {**cell, "low": low, "high": high}
    new = [round(v, 6) if isinstance(v := values.get(k), float) else v for k in _CELL]
    cells = row["cells"].setdefault(name, {}).setdefault(str(view), [])
    cells.insert(0 if "eng_" in str(cell["language"]) else len(cells), new)
