"""Data as repositories lay them out, and the messages about data that is not as it should be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.definitions import (
    Tier,
    get_benchmark,
    get_source,
    get_tier,
    resolve_names,
)
from emma.tools.evaluation.benchmarks.items import build_items
from emma.tools.evaluation.benchmarks.layout import Listing, configured_files, find_files
from emma.tools.evaluation.benchmarks.rows import available, read_file, read_rows
from emma.tools.evaluation.benchmarks.stores import Mirror
from emma.tools.evaluation.benchmarks.units import Plan, Unit, plan_units
from tests.tools.evaluation.benchmarks.sample_mirror import write_jsonl, write_mirror, write_parquet


@pytest.mark.parametrize(
    ("names", "config", "split", "found"),
    [
        (
            ["sw/test-00000-of-00002.parquet", "sw/test-00001-of-00002.parquet", "sw/train-0.parquet"],
            "sw",
            "test",
            2,
        ),
        (["data/eng_Latn/dev.tsv", "data/eng_Latn/test.tsv"], "eng_Latn", "validation", 1),
        (["sw/test/0000.parquet", "swh/test/0000.parquet"], "sw", "test", 1),
        (["data/sw_test.jsonl", "data/swh_test.jsonl"], "sw", "test", 1),
        (["data/eng_Latn.jsonl", "data/eng_Latn_x.jsonl"], "eng_Latn", "test", 1),
        (["data/train-00000-of-00001.parquet", "README.md"], None, "train", 1),
        (["en/train.parquet"], "en", "test", 0),
    ],
)
def test_layouts(names: list[str], config: str | None, split: str, found: int) -> None:
    assert len(find_files(Listing(names), config, split)) == found


def test_front_matter_goes_first() -> None:
    readme = (
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - {split: test, path: [a/*.jsonl]}\n---\ntext"
    )
    names = Listing(["a/1.jsonl", "a/2.jsonl", "en/test.jsonl"])
    assert configured_files(readme, names, "en", "test") == ["a/1.jsonl", "a/2.jsonl"]
    assert configured_files(readme, names, "fr", "test") is None
    assert configured_files("---\n: : [\n---", names, "en", "test") is None


def test_another_schema_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "facebook" / "belebele" / "data" / "eng_Latn.jsonl", [{"question": "q"}])
    with pytest.raises(
        UserError, match=r"eng_Latn\.jsonl: no field flores_passage, mc_answer1.*it has question"
    ):
        read_rows(Mirror(tmp_path), get_source("belebele"), "eng_Latn", "test")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("eng_Latn.jsonl", b'{"question": ', "cannot be read as .jsonl"),
        ("eng_Latn.parquet", b"PAR1 no", "cannot be read as .parquet"),
        ("eng_Latn.jsonl", b"", "contains no rows"),
        ("eng_Latn.jsonl", b"\xff\xfe{}", "cannot be read as UTF-8 text"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    path = tmp_path / "facebook" / "belebele" / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=part):
        read_rows(Mirror(tmp_path), get_source("belebele"), "eng_Latn", "test")


def test_unequal_sides_are_refused(tmp_path: Path) -> None:
    write_mirror(tmp_path)
    path = tmp_path / "flores200_dataset" / "devtest" / "swh_Latn.devtest"
    path.write_text(path.read_text(encoding="utf-8") + "one more\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"swh_Latn\.devtest: 7 lines, .*eng_Latn\.devtest has 6"):
        read_rows(Mirror(tmp_path), get_source("flores200"), "swh_Latn", "test")


def test_lines_end_only_at_line_breaks(tmp_path: Path) -> None:
    write_mirror(tmp_path)
    for code in ("eng_Latn", "swh_Latn"):
        path = tmp_path / "flores200_dataset" / "devtest" / f"{code}.devtest"
        path.write_text("a\u2028b\u0085c\nd\n", encoding="utf-8")
    rows = read_rows(Mirror(tmp_path), get_source("flores200"), "swh_Latn", "test")
    assert [row["source"] for row in rows] == ["a\u2028b\u0085c", "d"]


def test_tables_with_and_without_quotes(tmp_path: Path) -> None:
    quoted = tmp_path / "a.tsv"
    quoted.write_text('id\ttext\n1\t"say ""yes"""\n', encoding="utf-8")
    assert read_file(quoted) == [{"id": "1", "text": 'say "yes"'}]
    loose = tmp_path / "b.tsv"
    loose.write_text('1\t"open\n2\tplain\n3\ttoo\tmany\n', encoding="utf-8")
    assert read_file(loose, ["id", "text"]) == [{"id": "1", "text": '"open'}, {"id": "2", "text": "plain"}]


def test_a_language_needs_all_its_splits(tmp_path: Path) -> None:
    write_mirror(tmp_path)
    assert set(available(Mirror(tmp_path), get_source("sib200"))) == {
        "eng_Latn",
        "hin_Deva",
        "swh_Latn",
        "zho_Hans",
    }
    (tmp_path / "Davlan" / "sib200" / "data" / "hin_Deva" / "train.tsv").unlink()
    (tmp_path / "flores200_dataset" / "dev" / "eng_Latn.dev").unlink()
    assert "hin_Deva" not in available(Mirror(tmp_path), get_source("sib200"))
    assert not available(Mirror(tmp_path), get_source("flores200"))


def test_plans(store: Mirror, mirror: Path, tmp_path: Path) -> None:
    smoke = plan_units(["sib200", "aya"], store, get_tier("smoke"))
    assert [unit.name for unit in smoke.units] == [
        *("sib200/eng_Latn", "sib200/swh_Latn", "sib200/hin_Deva"),
        *("aya/hin_Deva", "aya/fra_Latn", "aya/tur_Latn"),
    ] or {unit.benchmark.name for unit in smoke.units} == {"sib200", "aya"}
    assert len(smoke.units) == 6
    with pytest.raises(UserError, match=r"data is missing:\n  sib200: .* and 196 more"):
        plan_units(["sib200"], store, get_tier("full"))
    some = plan_units(["flores200_eng_x", "sib200"], store, Tier(name="given"), {"swh_Latn"})
    assert [unit.name for unit in some.units] == ["flores200_eng_x/eng_Latn-swh_Latn", "sib200/swh_Latn"]
    assert [unit.name for unit in some.share((1, 2)).units] == ["sib200/swh_Latn"]
    with pytest.raises(UserError, match="no language xxx_Xxxx in sib200"):
        plan_units(["sib200"], store, Tier(name="given"), {"xxx_Xxxx"})
    with pytest.raises(UserError, match="data is missing"):
        plan_units(["sib200"], store, Tier(name="given"), {"fra_Latn"})
    shutil.copytree(mirror / "glot500c", tmp_path / "glot500c")
    partial = plan_units(["nll_glot500", "nll_pbc"], Mirror(tmp_path), get_tier("smoke"))
    assert {unit.benchmark.name for unit in partial.units} == {"nll_glot500"}
    assert "nll_pbc" in partial.missing[0]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing to run"):
        plan_units(["sib200"], Mirror(tmp_path / "nothing"), get_tier("smoke"))


def test_shards_take_everything_once_and_about_as_long() -> None:
    costs = {"sib200": 4.0, "belebele_emma": 1.0, "xnli_emma": 2.5}

    def plan(**counts: int) -> Plan:
        return Plan(
            tuple(Unit(get_benchmark(name), f"l{n}") for name, count in counts.items() for n in range(count))
        )

    def loads(whole: Plan, count: int) -> list[float]:
        shards = [whole.share((place, count), costs) for place in range(count)]
        names = [unit.name for shard in shards for unit in shard.units]
        assert sorted(names) == sorted(unit.name for unit in whole.units)
        return [sum(costs[unit.benchmark_name] for unit in shard.units) for shard in shards]

    assert loads(plan(belebele_emma=4, sib200=1), 2) == [4.0, 4.0]
    for count in (2, 3, 7):
        found = loads(plan(belebele_emma=40, xnli_emma=11, sib200=23), count)
        assert max(found) - min(found) <= 1.0
    assert loads(plan(sib200=2), 5) == [4.0, 4.0, 0.0, 0.0, 0.0]


def test_names() -> None:
    assert resolve_names(["belebele", "sib200", "sib200_emma", "belebele_emma"]) == [
        "belebele_emma",
        "sib200",
        "sib200_emma",
    ]
    with pytest.raises(UserError, match=r"no benchmark sib20.*sib200"):
        resolve_names(["sib20"])


def test_whole_files_are_told_apart_by_language(tmp_path: Path) -> None:
    rows = [
        {"prompt_translated": code, "lang_script": code}
        for code in ("vie_Latn", "xxx_Latn", "vie_Latn", "hin_Deva")
    ]
    write_parquet(tmp_path / "MaLA-LM" / "PolyWrite" / "train.parquet", rows)
    source = get_source("polywrite")
    assert len(read_rows(Mirror(tmp_path), source, "vie_Latn", "test")) == 2
    assert set(available(Mirror(tmp_path), source)) == {"vie_Latn", "hin_Deva"}
    with pytest.raises(UserError, match="no row with language yor_Latn"):
        read_rows(Mirror(tmp_path), source, "yor_Latn", "test")


def test_items_know_what_they_belong_to(tmp_path: Path) -> None:
    """Two questions about a passage share it; sentences of FLORES-200 their article, if its table is there."""
    write_mirror(tmp_path, items=4)
    store = Mirror(tmp_path)
    rows = read_rows(store, get_source("belebele"), "swh_Latn", "test")
    passages = [row["flores_passage"] for row in rows]
    clusters = [item.cluster for item in build_items(get_benchmark("belebele_emma"), "swh_Latn", store)]
    assert all(clusters)
    assert [clusters.index(name) for name in clusters] == [passages.index(text) for text in passages]
    flores = get_benchmark("flores200_eng_x")
    assert {item.cluster for item in build_items(flores, "eng_Latn-swh_Latn", store)} == {""}
    table = tmp_path / "flores200_dataset" / "metadata_devtest.tsv"
    table.write_text("URL\tdomain\n" + "a\tnews\na\tnews\nb\tnews\nc\tnews\n", encoding="utf-8")
    found = [item.cluster for item in build_items(flores, "eng_Latn-swh_Latn", Mirror(tmp_path))]
    assert found[0] == found[1] and len(set(found)) == 3
    table.write_text("URL\tdomain\na\tnews\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"metadata_devtest\.tsv: 1 rows, but the texts have 4 lines"):
        build_items(flores, "eng_Latn-swh_Latn", Mirror(tmp_path))
