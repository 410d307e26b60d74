"""FLORES+: tables instead of lines, codes of variants, and languages that lack a split."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.answers import off_target_rate
from emma.tools.evaluation.benchmarks.definitions import Tier, get_benchmark, language_names, resolve_names
from emma.tools.evaluation.benchmarks.harness import expand
from emma.tools.evaluation.benchmarks.items import build_items
from emma.tools.evaluation.benchmarks.mirror import check_mirror
from emma.tools.evaluation.benchmarks.rows import read_rows
from emma.tools.evaluation.benchmarks.stores import Mirror
from emma.tools.evaluation.benchmarks.units import plan_units
from emma.tools.languages.codes import language, subject
from tests.tools.evaluation.benchmarks.sample_mirror import SENTENCES, write_parquet

EN, SW, ZH = SENTENCES["eng_Latn"], SENTENCES["swh_Latn"], SENTENCES["zho_Hans"]


def test_is_among_the_modern_ones_and_runs_only_if_named() -> None:
    names = resolve_names(expand(["modern"]))
    assert {"flores_plus_eng_x", "flores_plus_x_eng"} < set(names)
    assert not {name for name in names if name.startswith("flores200")}
    codes = get_benchmark("flores_plus_eng_x").data.codes
    assert len(codes) == 227 and "eng_Latn" not in codes
    assert set(codes) <= language_names().keys()


def test_prompts_and_passages(store: Mirror) -> None:
    benchmark = get_benchmark("flores_plus_eng_x")
    item = build_items(benchmark, "eng_Latn-cmn_Hans", store, shots=1)[1]
    assert item.prompt.endswith(
        f"Translate the following sentence from English to Chinese (Simplified)\n[English]: {EN} (1) devtest\n"
        "[Chinese (Simplified)]:"
    )
    assert item.reference == f"{ZH} (1) devtest"
    back = build_items(get_benchmark("flores_plus_x_eng"), "twi_Latn_akua1239-eng_Latn", store, shots=1)
    assert back[4].prompt.endswith(f"[Akuapem Twi]: {SW} (4) devtest\n[English]:")
    assert back[4].reference == f"{EN} (4) devtest"
    # Three sentences to an article.
    assert [row.cluster == back[0].cluster for row in back[:6]] == [True] * 3 + [False] * 3


def test_languages_without_a_devtest_are_no_fault_unless_asked_for(store: Mirror, mirror: Path) -> None:
    plan = plan_units(["flores_plus_eng_x"], store, Tier(name="given"))
    assert [unit.language for unit in plan.units] == [
        "eng_Latn-cmn_Hans", "eng_Latn-swh_Latn", "eng_Latn-twi_Latn_akua1239",
    ]  # fmt: skip
    assert not plan.missing
    with pytest.raises(UserError, match="flores_plus_eng_x: eng_Latn-arg_Latn"):
        plan_units(["flores_plus_eng_x"], store, Tier(name="given"), {"arg_Latn"})
    assert not check_mirror(mirror, ["belebele_emma"], {"swh_Latn"}).faults
    report = check_mirror(mirror, ["flores_plus_eng_x"], None)
    assert report.languages == {"flores_plus_eng_x": 3} and not report.missing
    empty = Mirror(mirror / "pbc")
    with pytest.raises(UserError, match="data is missing"):
        plan_units(["flores_plus_eng_x"], empty, Tier(name="given"))


def test_rows_that_are_not_the_same_sentences_are_refused(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "openlanguagedata" / "flores_plus"
    shutil.copytree(mirror / "openlanguagedata" / "flores_plus", folder)
    path = folder / "devtest" / "swh_Latn.parquet"
    rows = pq.read_table(path).to_pylist()
    source = get_benchmark("flores_plus_eng_x").data
    write_parquet(path, [rows[1], rows[0], *rows[2:]])
    with pytest.raises(UserError, match=r"swh_Latn.parquet: row 0 has id 1, but 0 in"):
        read_rows(Mirror(tmp_path), source, "swh_Latn", "test")
    write_parquet(path, rows[:-1])
    with pytest.raises(UserError, match=r"swh_Latn.parquet: 5 lines, but .*eng_Latn.parquet has 6"):
        read_rows(Mirror(tmp_path), source, "swh_Latn", "test")
    write_parquet(path, [{"id": row["id"], "sentence": row["text"]} for row in rows])
    with pytest.raises(UserError, match="no field text"):
        read_rows(Mirror(tmp_path), source, "swh_Latn", "test")


def test_variants_belong_to_their_language() -> None:
    assert (
        subject("eng_Latn-twi_Latn_akua1239") == subject("twi_Latn_akua1239-eng_Latn") == "twi_Latn_akua1239"
    )
    assert language("eng_Latn-twi_Latn_akua1239").corpus == language("twi_Latn").corpus == "twi_Latn"
    assert language("eng_Latn-nob_Latn_radical").family == "Indo-European"
    score = off_target_rate(["中文中文中文中文中文中文"], "twi_Latn_akua1239")
    assert score is not None and score.value == 1.0
    for code in get_benchmark("flores_plus_eng_x").data.codes:
        assert language(code).family, code
