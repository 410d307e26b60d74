"""The page of a merge: what became of each clear gain and loss of its parents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.tools.evaluation.gains import compare
from emma.tools.evaluation.groups import LanguageFacts
from emma.tools.evaluation.journal import DocumentScore, LanguageScores
from emma.tools.evaluation.results import Result, heldout_results, write_results
from emma.tools.evaluation.stored import journal_of
from emma.tools.report.merge import merge_page, merge_view, read_evaluated
from tests.command_line import emma

DOCUMENTS = 60
LANGUAGES = ["deu_Latn", "eng_Latn", "fra_Latn", "swh_Latn"]
# Bits per byte of each language.
BASE = dict(zip(LANGUAGES, (1.0, 1.0, 1.0, 2.0), strict=True))
CPT = {"deu_Latn": 1.2, "eng_Latn": 1.3, "fra_Latn": 1.0, "swh_Latn": 1.4}
MERGE = {"deu_Latn": 1.2, "eng_Latn": 1.06, "fra_Latn": 1.0, "swh_Latn": 1.55}
INSTRUCT = {"deu_Latn": 1.0, "eng_Latn": 0.9, "fra_Latn": 1.0, "swh_Latn": 2.0}


@dataclass(frozen=True)
class Model:
    """A model's name and level in each language."""

    name: str
    bits: dict[str, float]


def scores(model: Model, text: str = "t") -> dict[tuple[str, str], LanguageScores]:
    """Documents whose difficulty all models share; each model's own noise is small."""
    found = {}
    for number, (language, bits) in enumerate(model.bits.items()):
        shared = np.random.default_rng(number).uniform(0.9, 1.1, DOCUMENTS)
        noise = np.random.default_rng([number, len(model.name)]).normal(1, 0.01, DOCUMENTS)
        documents = tuple(
            DocumentScore(f"d{place}", 100, 30, float(bits * each * 100 * np.log(2)))
            for place, each in enumerate(shared * noise)
        )
        key = ("monolingual", language)
        found[key] = LanguageScores(*key, "s", f"sha-{model.name}", f"{text}{number}", documents)
    return found


def write(
    folder: Path, model: Model, base: Model, accuracy: dict[str, tuple[float, float]] | None = None
) -> str:
    """An evaluation folder as `emma evaluate run` writes one; `accuracy` of the benchmark, of the base and the model."""
    rows: list[Result] = []
    models = {}
    for each, role in ((base, "base"), (model, "trained")):
        found = scores(each)
        for row in found.values():
            journal_of(folder, each.name).append(row)
        rows += heldout_results(each.name, found.values())
        models[each.name] = {"role": role, "step": None, "sha256": f"sha-{each.name}"}
        for language, values in (accuracy or {}).items():
            value = values[role == "trained"]
            rows.append(Result(each.name, "belebele", language, "acc", 900, value, 0.01, "b"))
    write_results(folder, rows)
    write_json(folder / "models.json", models)
    facts = LanguageFacts({("monolingual", name): "high" for name in LANGUAGES}, ("high",))
    write_json(
        folder / "gains.json", compare(base.name, model.name, scores(base), scores(model), facts).to_dict()
    )
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    base = Model("base", BASE)
    acc = {"eng_Latn": (0.5, 0.3)}
    return [
        write(tmp_path / "merged", Model("merged", MERGE), base, {"eng_Latn": (0.5, 0.48)}),
        write(tmp_path / "cpt", Model("cpt", CPT), base, acc),
        write(tmp_path / "instruct", Model("instruct", INSTRUCT), base),
    ]


def test_each_clear_change_of_a_parent_is_restored_lost_or_kept(folders: list[str]) -> None:
    child, *parents = (read_evaluated(folder) for folder in folders)
    view = merge_view(child, parents)
    cpt, instruct = view.parents
    fates = {(each.test, each.language): each for each in cpt.fates}
    assert {key: each.fate for key, each in fates.items()} == {
        ("monolingual", "eng_Latn"): "restored",
        ("belebele", "eng_Latn"): "restored",
        ("monolingual", "deu_Latn"): "still lost",
        ("monolingual", "swh_Latn"): "lost",
    }
    assert fates["monolingual", "eng_Latn"].part == pytest.approx(0.8, abs=0.03)
    assert fates["monolingual", "swh_Latn"].part == pytest.approx(0.25, abs=0.03)
    assert fates["belebele", "eng_Latn"].part == pytest.approx(0.9)
    assert {(each.language, each.fate) for each in instruct.fates} == {("eng_Latn", "lost")}
    assert (cpt.count("restored"), cpt.count("still lost"), cpt.count("lost"), cpt.count("kept")) == (
        2,
        1,
        1,
        0,
    )


def test_rows_are_means_over_common_languages_with_the_best_marked(folders: list[str]) -> None:
    child, *parents = (read_evaluated(folder) for folder in folders)
    rows = {(row.test, row.group): row for row in merge_view(child, parents).rows}
    assert rows["monolingual", "English"].changes == pytest.approx([0.3, -0.1, 0.06], abs=0.01)
    assert (
        rows["monolingual", "all but English"].languages == 3 and rows["monolingual", "high"].languages == 3
    )
    assert rows["monolingual", "all but English"].best == 0
    accuracy = rows["belebele", "English"]
    assert accuracy.changes == [pytest.approx(-0.2), None, pytest.approx(-0.02)] and accuracy.best == 2


def test_the_command_writes_a_page_that_names_all(folders: list[str], tmp_path: Path) -> None:
    page = tmp_path / "merge.html"
    answer = emma("report", "merge", *folders, "--output", str(page))
    assert answer.code == 0, answer.err
    text = page.read_text()
    for said in ("restored", "still lost", "instruct", "2 of 3 tests are restored", "1 of 1 are lost"):
        assert said in text
    assert merge_page(merge_view(*_split(folders))).count("<section") == 3


def _split(folders: list[str]) -> tuple:  # type: ignore[type-arg]
    child, *parents = (read_evaluated(folder) for folder in folders)
    return child, parents


def test_what_cannot_be_compared_is_refused(folders: list[str], tmp_path: Path) -> None:
    other = write(tmp_path / "far", Model("far", CPT), Model("elsewhere", BASE))
    answer = emma("report", "merge", folders[0], other)
    assert (
        answer.code != 0 and "was compared with elsewhere" in answer.err and not Path("merge.html").exists()
    )
    with pytest.raises(UserError, match="name a merge and its parents, each once"):
        merge_view(read_evaluated(folders[0]), [])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a model; its evaluation lies in"):
        read_evaluated(str(tmp_path / "model"))
