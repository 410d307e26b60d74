"""`emma report` on run folders at every stage."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from emma.base.errors import UserError
from emma.commands.report import group
from emma.tools.charts.figures import Bar, Differences
from emma.tools.charts.files import draw
from emma.tools.evaluation.results import read_results
from emma.tools.report.checkpoints import read_checkpoint
from emma.tools.report.compare import compare_page, paired_gains
from emma.tools.report.export import colors
from emma.tools.report.records import read_run
from tests.tools.report.sample_run import (
    codes,
    sample_recipe,
    write_benchmarks,
    write_evaluation,
    write_metrics,
    write_parity,
    write_plan,
    write_run,
    write_start,
)

VOID = {"meta", "br", "hr", "img", "link", "input"}
SVG = {"line", "path", "rect"}


class Page(HTMLParser):
    """Checks nesting, and collects the visible text and everything that could load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.parts: list[str] = []
        self.sections: set[str] = set()
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [str(found[key]) for key in ("src", "href") if key in found]
        if tag == "section":
            self.sections.add(str(found["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG | VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.parts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.parts))


def report(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(group, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def read_page(path: Path) -> Page:
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    atlas, *rest = page.addresses
    assert "atlas.html" in atlas and path.with_name(atlas).is_file()
    assert all(address.startswith("#") for address in rest), page.addresses
    assert "url(" not in html
    assert "@import" not in html
    return page


def test_page_of_a_finished_run(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    result = report("run", recipe.run_folder, "--json")
    facts = json.loads(result.stdout)
    assert facts["page"] == str(recipe.run_folder / "report" / "index.html")
    assert facts["steps"] == 120
    assert facts["languages"] == 51
    assert facts["parity"] is True
    page = read_page(Path(facts["page"]))
    assert page.sections == {"gains", "training", "mix", "parity", "recipe", "environment"}
    gains = json.loads((recipe.run_folder / "evaluation" / "gains.json").read_text())
    everyone = next(row for row in gains["groups"] if row["group"] == "all but English")
    assert f"{everyone['base']:.4f}" in page.text
    assert f"{everyone['difference']:+.4f}".replace("-", "−") in page.text
    for row in gains["languages"]:
        assert row["kind"] == "code" or row["language"] in page.text
    assert {row["dimension"] for row in gains["pooled"]} == {"all", "category", "script", "family"}
    for row in gains["pooled"]:
        assert f"{row['low']:+.4f} … {row['high']:+.4f}".replace("-", "−") in page.text
    assert "Other text" in page.text
    for group_name in ("high", "medium", "low", "seen by the base", "unseen by the base", "English"):
        assert group_name in page.text
    assert "Training loss" in page.text
    assert "Validation loss by resource category: monolingual" in page.text
    assert "Learning rate" in page.text
    assert "Gradient norm" in page.text
    assert "Throughput" in page.text
    assert "bilingual 25.0%" in page.text
    assert "Passed. The export of step 120" in page.text
    assert "vocab_size: 4096" in page.text
    assert recipe.sha256 in page.text
    assert "resume from step 60" in page.text
    assert "not yet" not in page.text.lower()


def test_alerts_and_skipped_steps_mark_the_page(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    alert = {"step": 80, "group": "language-eng_Latn", "rise": 0.0712, "above": 0.05, "since": 0}
    (recipe.run_folder / "alerts.jsonl").write_text(json.dumps(alert) + "\n{half")
    skipped = {
        "steps": [{"step": 41, "reason": "the gradient norm is nan", "launch": 1, "time": "2026-01-01"}]
    }
    (recipe.run_folder / "skipped.json").write_text(json.dumps(skipped))
    page = read_page(Path(json.loads(report("run", recipe.run_folder, "--json").stdout)["page"]))
    assert "Step 80: language-eng_Latn is 0.0712 bits per byte worse than at step 0" in page.text
    assert "Step 41 was rolled back and its batch skipped: the gradient norm is nan." in page.text


def test_missing_parts_are_reported_as_missing(tmp_path: Path) -> None:
    recipe = sample_recipe(tmp_path)
    write_start(recipe)
    report("run", recipe.run_folder)
    text = read_page(recipe.run_folder / "report" / "index.html").text
    for absent in (
        "Not evaluated yet.",
        "No step has been logged yet.",
        "The mix has no plan at",
        "No export with a parity report.",
    ):
        assert absent in text
    write_metrics(recipe)
    report("run", recipe.run_folder)
    text = read_page(recipe.run_folder / "report" / "index.html").text
    assert "No step has been logged yet." not in text
    assert "Training loss" in text
    assert "Not evaluated yet." in text


def test_failing_parity_is_shown_with_its_fault(tmp_path: Path) -> None:
    recipe = sample_recipe(tmp_path)
    write_start(recipe)
    write_parity(recipe, codes(5), passed=False)
    report("run", recipe.run_folder)
    text = read_page(recipe.run_folder / "report" / "index.html").text
    assert "Failed. The export of step 120 does not match" in text
    assert "logits differ by up to 0.3" in text


def test_evaluation_without_a_base_lists_scores(tmp_path: Path) -> None:
    recipe = sample_recipe(tmp_path)
    write_start(recipe)
    write_plan(recipe, codes(10))
    write_evaluation(recipe, codes(10))
    (recipe.run_folder / "evaluation" / "gains.json").unlink()
    report("run", recipe.run_folder)
    text = read_page(recipe.run_folder / "report" / "index.html").text
    row = next(
        row
        for row in read_results(recipe.run_folder / "evaluation")
        if row.model.startswith("sample") and row.language == "yor_Latn" and row.metric == "bits_per_byte"
    )
    assert f"yor_Latn heldout/monolingual 4 {row.value:.4f}" in text


def test_evaluation_of_monolingual_text_alone(tmp_path: Path) -> None:
    """As after `emma evaluate run RUN --base BASE --kinds monolingual`."""
    recipe = write_run(tmp_path, languages=10, steps=20)
    path = recipe.run_folder / "evaluation" / "gains.json"
    gains = json.loads(path.read_text())
    for table in ("groups", "languages"):
        gains[table] = [row for row in gains[table] if row["kind"] == "monolingual"]
    path.write_text(json.dumps(gains))
    report("run", recipe.run_folder)
    text = read_page(recipe.run_folder / "report" / "index.html").text
    assert "yor_Latn" in text
    assert "Other text" not in text


def test_damaged_records_are_named(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, languages=10, steps=20)
    run, page = recipe.run_folder, recipe.run_folder / "report" / "index.html"
    for damaged, content in (
        (run / "evaluation" / "gains.json", b"{"),
        (run / "environment.json", b"nothing"),
        (recipe.mix_folder / "plan.parquet", b"PAR1"),
        (run / "metrics.jsonl", b"{broken}\n"),
    ):
        before = damaged.read_bytes()
        damaged.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(damaged.name)):
            CliRunner().invoke(group, ["run", str(run)], catch_exceptions=False)
        damaged.write_bytes(before)
    assert not page.exists()


def test_comparison_at_equal_budget(tmp_path: Path) -> None:
    mono = write_run(tmp_path, "mono", bilingual=False, level=0.3, seed=2)
    bi = write_run(tmp_path, "bi", level=0.6, seed=3)
    report("compare", mono.run_folder, bi.run_folder, "--output", tmp_path / "compare.html")
    page = read_page(tmp_path / "compare.html")
    assert "mono and bi" in page.text
    assert "Equal budget: each run was trained on" in page.text
    for run in (mono, bi):
        gains = json.loads((run.run_folder / "evaluation" / "gains.json").read_text())
        for row in gains["groups"]:
            assert f"{row['difference']:+.4f}".replace("-", "−") in page.text
    assert "bi against mono" in page.text
    assert "Validation: monolingual, high" in page.text
    assert "data.mix.components.bilingual.share" in page.text
    paired = paired_gains(read_run(mono.run_folder), read_run(bi.run_folder))
    assert paired is not None
    for pooled in paired.pooled:
        assert f"{pooled.low:+.4f} … {pooled.high:+.4f}".replace("-", "−") in page.text
    scores = {
        (row.model, row.language): row.value
        for run in (mono, bi)
        for row in read_results(run.run_folder / "evaluation")
        if row.metric == "bits_per_byte" and row.benchmark == "heldout/monolingual"
    }
    for row in paired.languages:
        if row.kind == "monolingual":
            change = scores["bi/step-120", row.language] - scores["mono/step-120", row.language]
            assert row.difference == pytest.approx(change)


def test_losses_of_two_tokenizers_are_not_compared(tmp_path: Path) -> None:
    one = write_run(tmp_path, "one", languages=10, steps=20)
    two = write_run(tmp_path, "two", languages=10, steps=20)
    path = two.mix_folder / "mix.json"
    facts = [json.loads((run.mix_folder / "mix.json").read_text()) for run in (one, two)]
    for run, value, checksum in zip((one, two), facts, ("a" * 64, "b" * 64), strict=True):
        (run.mix_folder / "mix.json").write_text(json.dumps({**value, "tokenizer_sha256": checksum}))
    text = Page(compare_page([read_run(one.run_folder), read_run(two.run_folder)])).text
    assert "their losses per token are not compared" in text
    assert "nats per token" not in text
    assert "equal tokens are not equal text" in text
    path.write_text(json.dumps({**facts[1], "tokenizer_sha256": "a" * 64}))
    text = Page(compare_page([read_run(one.run_folder), read_run(two.run_folder)])).text
    assert "their losses per token are not compared" not in text
    assert "nats per token" in text


def test_unequal_budgets_are_stated(tmp_path: Path) -> None:
    one = write_run(tmp_path, "one", languages=10, steps=20)
    two = write_run(tmp_path, "two", languages=10, steps=40)
    text = Page(compare_page([read_run(one.run_folder), read_run(two.run_folder)])).text
    assert "Unequal budgets: the runs were trained on 41.0 k and 81.9 k tokens" in text


def test_comparison_needs_two_names(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, languages=10, steps=20)
    record = read_run(recipe.run_folder)
    with pytest.raises(UserError, match="two or more runs"):
        compare_page([record])
    with pytest.raises(UserError, match="same name"):
        compare_page([record, record])


def test_benchmarks_of_two_runs(tmp_path: Path) -> None:
    mono = write_run(tmp_path, "mono", bilingual=False, level=0.3, seed=2)
    bi = write_run(tmp_path, "bi", level=0.6, seed=3)
    write_benchmarks(mono, 0.12, 2)
    write_benchmarks(bi, 0.3, 3)
    result = report("compare", mono.run_folder, bi.run_folder, "--output", tmp_path / "c.html", "--json")
    assert json.loads(result.stdout)["benchmarks"] == ["sib200", "xnli_emma", "flores200_eng_x"]
    page = read_page(tmp_path / "c.html")
    assert page.sections >= {
        "gains",
        "benchmarks",
        "field",
        "forgetting",
        "checkpoints",
        "reference",
        "training",
    }
    rows = read_results(mono.run_folder / "evaluation")
    for name in ("base", "mono/step-120"):
        values = {
            row.language: row.value
            for row in rows
            if (row.model, row.benchmark, row.metric) == (name, "sib200", "acc")
        }
        others = [value for code, value in values.items() if code != "eng_Latn"]
        assert f" {100 * sum(others) / len(others):.1f} " in page.text
    # Baselines, health, groups, verdicts, and every language are in the page's own markup.
    for text in (
        "chance 14.3",
        "majority 25.0",
        "most frequent answer 30 %",
        "empty outputs 2.0 %",
        "All 27 languages",
    ):
        assert text in page.text
    for group_name in (
        "medium-high",
        "unseen",
        "in the mix",
        "not in the mix",
        "Sino-Tibetan",
        "Hani",
        "isolate",
    ):
        assert group_name in page.text
    assert "zho_Hans" in page.text
    assert "eng_Latn-khk_Cyrl" in page.text
    assert "SIB-200 over checkpoints" in page.text
    html = (tmp_path / "c.html").read_text()
    assert 'class="sortable main"' in html
    # The published scores, with their source.
    for text in ("EMMA-500 Llama 3 8B Bi", "42.1", "commit ed9a8f8", "artefact of the scoring"):
        assert text in page.text


def test_benchmarks_of_one_run_are_on_its_page(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, languages=10, steps=20)
    write_benchmarks(recipe)
    report("run", recipe.run_folder)
    page = read_page(recipe.run_folder / "report" / "index.html")
    assert {"benchmarks", "forgetting", "checkpoints"} <= page.sections
    assert "field" not in page.sections


@pytest.mark.slow
def test_figures_and_tables_are_exported(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, name, languages=10, steps=20, seed=seed) for name, seed in (("a_1", 2), ("b", 3))
    ]
    for recipe in runs:
        write_benchmarks(recipe, benchmarks=("xnli_emma",))
    folder = tmp_path / "figures"
    report("compare", *(r.run_folder for r in runs), "--output", tmp_path / "c.html", "--export", folder)
    names = {path.name for path in folder.iterdir()}
    for stem in ("xnli_emma-a_1-differences", "xnli_emma-b-scatter", "heldout-checkpoints"):
        assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{stem}.svg").read_text()
    assert {"benchmarks.tex", "categories.tex", "forgetting.tex", "published.tex"} <= names
    table = (folder / "benchmarks.tex").read_text()
    header = next(line for line in table.splitlines() if line.startswith("benchmark"))
    assert r"a\_1 & change & W/T/L" in header
    cells = {line.count("&") for line in table.splitlines() if line.endswith(r"\\")}
    assert cells == {header.count("&")}
    assert "XNLI & accuracy & 3 & 33.3 &" in table


def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    bars = (Bar("deu_Latn", 1.0, 0.2, "o0", "tip"), Bar("yor_Latn", -1.0, None, "o6", "tip"))
    figure = Differences("x", "Title", "unit", bars, (("o0", "high"),))
    drawn = [[path.read_bytes() for path in draw(figure, tmp_path / place, colors())] for place in ("a", "b")]
    assert drawn[0] == drawn[1]


def test_published_scores_on_the_terminal(tmp_path: Path) -> None:
    text = report("reference").stdout
    assert "commit ed9a8f8" in text
    line = next(line for line in text.splitlines() if line.startswith("flores200_eng_x chrf++"))
    assert line.split()[2:8] == ["15.1", "24.1", "24.7", "33.3", "38.3", "42.1"]
    rows = json.loads(report("reference", "--json").stdout)
    assert {row["group"] for row in rows} >= {"all", "all but English", "English", "high", "unseen"}
    with pytest.raises(UserError, match="need FOLDER"):
        report("reference", "--published-codes")
    with pytest.raises(UserError, match="result tables"):
        report("reference", tmp_path)


def test_two_checkpoints_of_a_run(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, languages=10, steps=20)
    write_benchmarks(recipe, benchmarks=("sib200",))
    run = str(recipe.run_folder)
    page = tmp_path / "c.html"
    report("compare", f"{run}@10", f"{run}@20", "--output", page)
    text = read_page(page).text
    assert "sample@10 and sample@20" in text
    assert "Unequal budgets: the runs were trained on 20.5 k and 41.0 k tokens" in text
    assert read_checkpoint(f"{run}@20").gains == read_run(run).gains
    assert read_checkpoint(f"{run}@10").steps[-1]["step"] == 10
    with pytest.raises(UserError, match=r"sample@7: this step was not evaluated \(evaluated: 10, 20\)"):
        read_checkpoint(f"{run}@7")
