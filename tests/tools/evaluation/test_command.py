"""`emma evaluate run` as a user runs it."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from emma.base.errors import UserError
from emma.commands.evaluate import group
from emma.recipes.load import write_recipe
from emma.tools.evaluation import likelihood
from emma.tools.evaluation.intrinsic import Settings, load_model
from emma.tools.evaluation.journal import DocumentScore, Journal, LanguageScores
from emma.tools.evaluation.likelihood import Scorer
from emma.tools.evaluation.results import read_results
from emma.tools.evaluation.stored import evaluated_models, stored_scores
from emma.tools.evaluation.targets import resolve_target
from tests.tools.evaluation.tiny_model import TEXTS, write_corpus, write_model
from tests.tools.report.sample_run import sample_recipe


def evaluate(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(group, ["run", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_scores_every_language_and_repeats_none(model: Path, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    evaluate(model, "--text", corpus, "--output", output)
    rows = list(csv.DictReader((output / "results.csv").open(encoding="utf-8")))
    assert {row["language"] for row in rows} == set(TEXTS)
    assert {row["metric"] for row in rows} == {"bits_per_byte", "nll_per_token", "nll_per_document"}
    assert {row["n"] for row in rows} == {"4"}
    assert all(float(row["error"]) > 0 for row in rows)
    assert "window:64|stride:32" in rows[0]["signature"]
    table = pq.read_table(output / "results.parquet").to_pylist()
    assert [str(row["value"]) for row in table] == [row["value"] for row in rows]

    journal = output / "heldout" / "trained.jsonl"
    before = journal.read_bytes()
    evaluate(model, "--text", corpus, "--output", output)
    assert journal.read_bytes() == before


def test_changed_text_or_settings_are_scored_again(model: Path, tmp_path: Path) -> None:
    output, corpus = tmp_path / "evaluation", write_corpus(tmp_path / "corpus", ("eng_Latn", "spa_Latn"))
    arguments = [model, "--text", corpus, "--output", output]
    evaluate(*arguments)
    journal = output / "heldout" / "trained.jsonl"
    write_corpus(tmp_path / "corpus", ("spa_Latn",), documents=3)
    evaluate(*arguments)
    assert [json.loads(line)["language"] for line in journal.read_text().splitlines()] == [
        "eng_Latn",
        "spa_Latn",
        "spa_Latn",
    ]
    evaluate(*arguments, "--stride", "64")
    assert len(journal.read_text().splitlines()) == 5


def test_line_cut_by_a_crash_is_scored_again(model: Path, tmp_path: Path) -> None:
    output, corpus = tmp_path / "evaluation", write_corpus(tmp_path / "corpus", ("eng_Latn", "spa_Latn"))
    evaluate(model, "--text", corpus, "--output", output)
    journal = output / "heldout" / "trained.jsonl"
    whole, results = journal.read_bytes(), (output / "results.csv").read_bytes()
    for lost in (1, 40, len(whole) - 9):
        journal.write_bytes(whole[:-lost])
        evaluate(model, "--text", corpus, "--output", output)
        assert journal.read_bytes() == whole
        assert (output / "results.csv").read_bytes() == results


def test_killed_run_continues(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [model, "--text", corpus, "--output", tmp_path / "evaluation"]
    journal = tmp_path / "evaluation" / "heldout" / "trained.jsonl"
    append = Journal.append

    def append_two_and_die(self: Journal, scores: LanguageScores) -> None:
        append(self, scores)
        if len(journal.read_bytes().splitlines()) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=evaluate, args=arguments)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append_two_and_die)
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    first = journal.read_bytes()
    assert not (tmp_path / "evaluation" / "results.csv").exists()

    evaluate(*arguments)
    assert journal.read_bytes().startswith(first)
    languages = [json.loads(line)["language"] for line in journal.read_bytes().splitlines()]
    assert sorted(languages) == sorted(TEXTS)


def test_scores_do_not_depend_on_where_a_run_was_interrupted(corpus: Path, tmp_path: Path) -> None:
    """To the last digit: whichever languages are finished or asked for, and whatever memory was handed out before."""
    # With windows this long, documents' last digits do change with their batch.
    model, whole = write_model(tmp_path / "trained", seed=1, positions=256), tmp_path / "whole"
    evaluate(model, "--text", corpus, "--output", whole)
    lines = (whole / "heldout" / "trained.jsonl").read_bytes().splitlines(keepends=True)
    held = []
    for finished in range(len(lines)):
        output = tmp_path / f"after-{finished}"
        journal = output / "heldout" / "trained.jsonl"
        journal.parent.mkdir(parents=True)
        journal.write_bytes(b"".join(lines[:finished]))
        held += [torch.empty(1 + 97 * finished), bytearray(1 + 61 * finished)]
        evaluate(model, "--text", corpus, "--output", output)
        assert journal.read_bytes() == b"".join(lines)
        for name in ("results.csv", "results.parquet"):
            assert (output / name).read_bytes() == (whole / name).read_bytes()
    for line in lines:
        language = json.loads(line)["language"]
        evaluate(model, "--text", corpus, "--output", tmp_path / language, "--languages", language)
        assert (tmp_path / language / "heldout" / "trained.jsonl").read_bytes() == line


def test_languages_at_once_get_the_scores_of_one_after_another(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same order, to the last digit; an interruption loses little and leaves torch its threads."""
    evaluate(model, "--text", corpus, "--output", tmp_path / "alone")
    alone = (tmp_path / "alone" / "heldout" / "trained.jsonl").read_bytes()
    assert [json.loads(line)["language"] for line in alone.splitlines()] == sorted(TEXTS)
    busy = set()
    score = Scorer.score

    def watched(self: Scorer, documents: Sequence[tuple[str, str]]) -> list[DocumentScore]:
        busy.add(threading.get_ident())
        time.sleep(0.01)
        assert torch.get_num_threads() == 1
        return score(self, documents)

    torch.set_num_threads(3)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "score", watched)
            evaluate(model, "--text", corpus, "--output", tmp_path / "together")
            assert len(busy) == 3 and threading.get_ident() not in busy
            assert (tmp_path / "together" / "heldout" / "trained.jsonl").read_bytes() == alone
            patch.setattr(Journal, "append", lambda self, scores: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                evaluate(model, "--text", corpus, "--output", tmp_path / "stopped")
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
        large = load_model(model, Settings(64))
        assert large.at_once == 3
        monkeypatch.setattr(likelihood, "_SMALL", 1000)
        assert large.at_once == 1
    finally:
        torch.set_num_threads(1)


def test_base_against_trained(model: Path, base: Path, corpus: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.txt"
    seen.write_text("eng_Latn\nspa_Latn\n")
    result = evaluate(
        model, "--text", corpus, "--base", base, "--seen", seen, "--output", tmp_path / "evaluation", "--json"
    )
    gains = json.loads(result.stdout)
    assert gains == json.loads((tmp_path / "evaluation" / "gains.json").read_text())
    languages = {row["language"]: row for row in gains["languages"]}
    assert set(languages) == set(TEXTS)
    groups = {row["group"]: row for row in gains["groups"]}
    assert groups["all but English"]["languages"] == len(TEXTS) - 1
    assert groups["English"]["base"] == languages["eng_Latn"]["base"]
    assert groups["seen by the base"]["base"] == languages["spa_Latn"]["base"]
    assert groups["unseen by the base"]["languages"] == len(TEXTS) - 2
    table = {
        (row["model"], row["language"]): float(row["value"])
        for row in csv.DictReader((tmp_path / "evaluation" / "results.csv").open())
        if row["metric"] == "bits_per_byte"
    }
    for code, row in languages.items():
        assert row["base"] == pytest.approx(table["base", code])
        assert row["difference"] == pytest.approx(table["trained", code] - table["base", code])


def test_table_names_groups_and_languages(model: Path, base: Path, corpus: Path, tmp_path: Path) -> None:
    output = evaluate(model, "--text", corpus, "--base", base, "--output", tmp_path / "evaluation").stdout
    assert "base → trained" in output
    assert "all but English" in output
    for language in TEXTS:
        assert language in output


def test_dry_run_writes_nothing(model: Path, corpus: Path, tmp_path: Path) -> None:
    result = evaluate(model, "--text", corpus, "--output", tmp_path / "evaluation", "--dry-run", "--json")
    assert json.loads(result.stdout)["languages"] == len(TEXTS)
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["{model}", "--text", "{tmp}/none"], "no such folder"),
        (["{model}", "--text", "{tmp}"], "no held-out text"),
        (["{model}", "--text", "{corpus}", "--languages", "xxx_Xxxx"], "no language xxx_Xxxx"),
        (["{model}", "--text", "{corpus}", "--kinds", "poems"], "no kind poems"),
        (["{model}"], "--text is required"),
        (["{tmp}", "--text", "{corpus}"], "neither a model folder"),
        (["{model}", "--text", "{corpus}", "--step", "3"], "--step 3 has no meaning"),
        (["{model}", "--text", "{corpus}", "--window", "1000"], "window is 1000"),
    ],
)
def test_mistakes(model: Path, corpus: Path, tmp_path: Path, arguments: list[str], part: str) -> None:
    filled = [text.format(model=model, corpus=corpus, tmp=tmp_path) for text in arguments]
    with pytest.raises(UserError, match=part):
        CliRunner().invoke(group, ["run", *filled, "--output", str(tmp_path / "out")], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_damaged_corpus_is_named(model: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ("eng_Latn",))
    part = corpus / "split" / "monolingual" / "eng_Latn" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"eng_Latn/part-00000\.parquet: cannot be read"):
        CliRunner().invoke(group, ["run", str(model), "--text", str(corpus)], catch_exceptions=False)


def test_run_resolves_to_its_latest_export(model: Path, base: Path, tmp_path: Path) -> None:
    recipe = sample_recipe(tmp_path)
    write_recipe(recipe, recipe.run_folder / "recipe.yaml")
    write_corpus(tmp_path / "corpus", ("eng_Latn", "spa_Latn"))
    with pytest.raises(UserError, match="no export in"):
        CliRunner().invoke(group, ["run", str(recipe.run_folder)], catch_exceptions=False)
    for step, source in ((9, base), (10, model)):
        shutil.copytree(source, recipe.run_folder / "hf" / f"step-{step}")
    evaluate(recipe.run_folder, "--base", base)
    evaluate(recipe.run_folder, "--step", "9", "--base", base)
    folder = recipe.run_folder / "evaluation"
    models = {m.name: (m.role, m.step) for m in evaluated_models(folder)}
    assert models == {
        "base": ("base", None),
        "sample/step-9": ("trained", 9),
        "sample/step-10": ("trained", 10),
    }
    assert {row.model for row in read_results(folder)} == set(models)
    for one in evaluated_models(folder):
        assert set(stored_scores(folder, one)) == {("monolingual", "eng_Latn"), ("monolingual", "spa_Latn")}
    # Step 9 is the base itself.
    gains = json.loads((folder / "gains.json").read_text())
    assert gains["trained"] == "sample/step-9"
    assert all(row["difference"] == 0 for row in gains["languages"])
    with pytest.raises(UserError, match="step 11 is not exported; exported are 9, 10"):
        CliRunner().invoke(group, ["run", str(recipe.run_folder), "--step", "11"], catch_exceptions=False)


def test_a_shipped_runs_name_is_the_run_though_a_folder_has_it_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the demo, which writes everything into `demo/`."""
    monkeypatch.chdir(tmp_path)
    export = Path("demo/runs/demo/hf/step-300")
    shutil.copytree(model, export)
    target = resolve_target("demo")
    assert (target.model, target.folder, target.step) == ("demo/step-300", export, 300)
