"""Finds every way in which a release folder can go wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, write_json
from emma.checkpoints_conversion.release.card import render_card
from emma.checkpoints_conversion.release.facts import card_facts
from emma.checkpoints_conversion.release.record import _benchmark_again, _facts, _read_record, _scores
from emma.checkpoints_conversion.release.verify import generate_faults, release_faults
from emma.commands.release import group
from emma.tools.evaluation.benchmarks import choices, translation
from emma.tools.evaluation.benchmarks.items import Item
from emma.tools.evaluation.benchmarks.records import Finished, unit_file, write_unit
from emma.tools.evaluation.benchmarks.scores import Response
from emma.tools.evaluation.gains import compare, gains_of
from emma.tools.evaluation.groups import LanguageFacts
from emma.tools.evaluation.journal import LanguageScores
from emma.tools.hub.checksums import write_checksums
from emma.tools.hub.kinds import release_kind

Scores = Mapping[tuple[str, str], LanguageScores]


def test_sound_release(released: Path) -> None:
    assert release_faults(released) == []
    assert generate_faults(released) == []
    result = CliRunner().invoke(group, ["verify", str(released), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == {"folder": str(released), "passed": True, "faults": []}


def _edit(path: Path, **changes: object) -> None:
    write_json(path, {**read_json(path), **changes})


def _flip(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_flip, "about other weights"),
        (lambda folder: sorted(folder.glob("*.safetensors"))[1].unlink(), "are missing"),
        (lambda folder: _edit(folder / "config.json", num_hidden_layers=3), "do not match config.json"),
        (lambda folder: _edit(folder / "generation_config.json", eos_token_id=0), "eos_token"),
        (lambda folder: (folder / "generation_config.json").unlink(), "generation_config.json: missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: missing"),
        (lambda folder: (folder / "README.md").unlink(), "README.md: missing"),
        (lambda folder: _replace(folder / "README.md", "license: apache-2.0\n", ""), "`license` is missing"),
        (
            lambda folder: _replace(folder / "README.md", "- de\n", "- deu_Latn\n"),
            "'deu_Latn', which is not an ISO 639",
        ),
        (lambda folder: _replace(folder / "README.md", "license: apache-2.0", "license: llama3"), "requires"),
        (
            lambda folder: _replace(
                folder / "README.md", "pipeline_tag: text-generation", "pipeline_tag: [a: {"
            ),
            "its metadata is invalid",
        ),
        (lambda folder: _edit(folder / "parity.json", passed=False, faults=["x"]), "parity failed"),
        (lambda folder: (folder / "parity.json").unlink(), "no such file"),
    ],
)
def test_faults_are_found_even_under_fresh_checksums(
    release: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(release)
    assert any("SHA256SUMS" in fault for fault in release_faults(release))
    write_checksums(release)
    assert any(message in fault for fault in release_faults(release)), release_faults(release)
    with pytest.raises(CheckFailedError, match="is not a valid release"):
        CliRunner().invoke(group, ["verify", str(release)], catch_exceptions=False)


def test_every_changed_missing_or_added_file_is_named(release: Path) -> None:
    (release / "recipe.yaml").write_text("other")
    (release / "parity.html").unlink()
    (release / "extra.bin").write_bytes(b"x")
    (release / ".cache").mkdir()
    (release / ".cache" / "upload").write_bytes(b"the Hub client's own")
    faults = release_faults(release)
    assert len(faults) == 3
    for name in ("recipe.yaml", "parity.html", "extra.bin"):
        assert any(name in fault for fault in faults)


def test_no_release_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        release_kind(tmp_path / "none")
    assert any("not a release folder" in fault for fault in release_faults(tmp_path))


def _edit_gains(folder: Path) -> None:
    """A better average, in gains.json and on the card alike."""
    path = folder / "evaluation" / "gains.json"
    gains = read_json(path)
    group = gains["groups"][0]
    old = f"{group['trained']:.4f}"
    group["trained"] -= 0.2
    write_json(path, gains)
    _replace(folder / "README.md", old, f"{group['trained']:.4f}")


def _edit_score(folder: Path) -> None:
    path = folder / "evaluation" / "results.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    row = next(n for n, line in enumerate(lines) if ",bits_per_byte," in line and "step-" in line)
    cells = lines[row].split(",")
    cells[5] = f"{float(cells[5]) - 0.01}"
    lines[row] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_edit_gains, "gains.json: monolingual/group all but English: trained is"),
        (_edit_score, "bits_per_byte: value is .*, but the released outputs give"),
        (lambda f: _replace(f / "README.md", "of device time", "of GPU time"), "is not what the released records give"),
        (lambda f: _replace(f / "README.md", "| **monolingual** | 12 |", "| **monolingual** | 500 |"), "500"),
        (lambda f: _replace(f / "README.md", "parameters were trained", "8 B parameters were trained"), "8 B"),
        (lambda f: _replace(f / "README.md", "## Limitations", "Best model of 2026.\n\n## Limitations"), "Best model"),
        (lambda f: (f / "evaluation" / "heldout" / "base.jsonl").unlink(), "cannot be computed again"),
        (lambda f: (f / "record" / "metrics.jsonl").unlink(), "metrics.jsonl: cannot be read"),
        (lambda f: _replace(f / "record" / "metrics.jsonl", '"tokens_per_second_per_gpu":3', '"tokens_per_second_per_gpu":9'), "device time"),
    ],
)  # fmt: skip
def test_figures_are_computed_again(release: Path, spoil: Callable[[Path], None], message: str) -> None:
    """Edited together with SHA256SUMS, so that only the records can tell."""
    spoil(release)
    write_checksums(release)
    faults = release_faults(release)
    assert any(re.search(message, fault) for fault in faults), faults


def _worst_left_out(scores: Scores, facts: LanguageFacts) -> tuple[Scores, LanguageFacts]:
    return {key: value for key, value in scores.items() if key[1] != "deu_Latn"}, facts


def _moved(scores: Scores, facts: LanguageFacts) -> tuple[Scores, LanguageFacts]:
    moved = {**facts.category, ("monolingual", "deu_Latn"): facts.categories[-1]}
    assert moved != facts.category
    return scores, replace(facts, category=moved)


def _never_trained_on(scores: Scores, facts: LanguageFacts) -> tuple[Scores, LanguageFacts]:
    return scores, replace(facts, trained=(facts.trained or frozenset()) - {("monolingual", "deu_Latn")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_worst_left_out, "leaves out monolingual/deu_Latn"),
        (_moved, "monolingual/deu_Latn: category is"),
        (_never_trained_on, "monolingual/deu_Latn: trained_on is False"),
    ],
)
def test_figures_that_agree_with_each_other_are_computed_again(
    release: Path, change: Callable[[Scores, LanguageFacts], tuple[Scores, LanguageFacts]], message: str
) -> None:
    """Whoever forges uses this project: gains, tables and card are what it makes of the changed facts."""
    record = _read_record(release)
    known = gains_of(record.gains or {}, release)
    facts = _facts(release, record, known)
    changed = [
        change(_scores(release, model, known.signature), facts) for model in (known.base, known.trained)
    ]
    gains = compare(known.base, known.trained, changed[0][0], changed[1][0], changed[0][1])
    write_json(release / "evaluation" / "gains.json", gains.to_dict())
    path = release / "evaluation" / "results.csv"
    listed = {row.language for row in gains.languages}
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [lines[0], *(line for line in lines[1:] if line.split(",")[2] in listed)]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    manifest = read_json(release / "manifest.json")["extra"]
    card = card_facts(
        _read_record(release), manifest["step"], read_json(release / "parity.json"), manifest["model"]
    )
    year = re.search(r"year = \{(\d{4})\}", (release / "README.md").read_text(encoding="utf-8"))
    assert year is not None
    (release / "README.md").write_text(render_card(card, year[1]), encoding="utf-8")
    write_checksums(release)
    faults = release_faults(release)
    assert any(re.search(message, fault) for fault in faults), faults


@pytest.mark.parametrize(
    ("cell", "value", "message"),
    [(4, "900", "n is 900"), (6, "0.00001", "error is 0.00001"), (2, "fra_Xxxx", "is not among the released outputs"),
     (1, "gsm8k", "is not among the released outputs")],
)  # fmt: skip
def test_every_cell_of_the_table_is_computed_again(
    release: Path, cell: int, value: str, message: str
) -> None:
    path = release / "evaluation" / "results.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    row = next(n for n, line in enumerate(lines) if "step-" in line)
    cells = lines[row].split(",")
    cells[cell] = value
    lines[row] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_checksums(release)
    assert any(message in fault for fault in release_faults(release)), release_faults(release)


def test_scores_of_benchmarks_are_computed_again_from_their_items(tmp_path: Path) -> None:
    """Also those of a whole corpus; a value that was edited with its table does not hide them."""
    texts = ["the cat sat on a mat .", "it slept there , well and long", "the dog did not sleep"]
    items = [Item(n, "", ("a", "b", "c"), n % 3) for n in range(6)]
    responses = [
        Response(likelihoods=(-1.0, -2.0, -0.5 * (n % 2)), nll=3.0 + n, tokens=5 + n % 3, bytes=20 + n)
        for n in range(6)
    ]
    found = {
        "acc": choices.accuracy(items, responses),
        "macro_f1": choices.macro_f1(items, responses),
        "bits_per_byte": choices.bits_per_byte(items, responses),
        "chrf++": translation.chrf(texts, texts[1:] + texts[:1]),
        "bleu": translation.bleu(texts, [f"{text} again" for text in texts]),
    }
    for metric, score in found.items():
        assert score.value > 0
        for stored in (score.value, score.value + 0.1):
            row = {"value": stored, "error": score.error, "n": score.n, "signature": ""}
            unit = Finished("some", "deu_Latn", "k", "m", "s", {metric: row}, {})
            samples = [{"index": n, "scores": {metric: item}} for n, item in enumerate(score.items)]
            write_unit(unit_file(tmp_path, "run/step-1", "some", "deu_Latn"), unit, samples)
            again = _benchmark_again(tmp_path, "run/step-1", "some", "deu_Latn", metric)
            assert again is not None and again.value == pytest.approx(score.value, rel=1e-9), metric
        assert _benchmark_again(tmp_path, "run/step-1", "some", "deu_Latn", "other") is None


def test_another_recipe_is_refused(release: Path) -> None:
    _replace(release / "recipe.yaml", "global: 8", "global: 16")
    write_checksums(release)
    assert any(
        "is not the recipe that the release was made with" in fault for fault in release_faults(release)
    )


def test_a_metadata_figure_is_computed_again(release: Path) -> None:
    text = (release / "README.md").read_text(encoding="utf-8")
    value = re.search(r"^ +value: ([0-9.]+)$", text, re.MULTILINE)
    assert value is not None
    (release / "README.md").write_text(text.replace(value[0], value[0][:-2] + "11", 1), encoding="utf-8")
    write_checksums(release)
    assert any("value:" in fault for fault in release_faults(release))


def test_the_record_names_no_machine(released: Path) -> None:
    for path in (released / "record").glob("*.json*"):
        text = path.read_text(encoding="utf-8")
        assert "node-1" not in text and "/tmp" not in text


def test_a_text_under_apaches_name_is_refused(release: Path) -> None:
    (release / "LICENSE").write_text("Apache License, Version 2.0\n", encoding="utf-8")
    write_checksums(release)
    assert any("LICENSE: its text (4 words) is not the" in fault for fault in release_faults(release))
    (release / "LICENSE").write_bytes((Path(__file__).parents[3] / "LICENSE").read_bytes())
    write_checksums(release)
    assert release_faults(release) == []
