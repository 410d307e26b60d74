"""The estimate of a run against the tokens that its model really reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from emma.commands.evaluate import group
from emma.tools.evaluation.benchmarks import cost
from emma.tools.evaluation.benchmarks.cost import _longest_of
from emma.tools.evaluation.benchmarks.records import read_unit
from tests.tools.evaluation.benchmarks.harness_mirror import write_harness_mirror
from tests.tools.evaluation.benchmarks.sample_mirror import write_mirror

CHOICES = (
    "sib200",
    "sib200_emma",
    "taxi1500",
    "belebele_emma",
    "xcopa_emma",
    "xstorycloze_emma",
    "xnli_emma",
)
TEXTS = ("flores200_eng_x", "mgsm_direct_emma")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with enough items for examples to repeat."""
    return write_mirror(tmp_path_factory.mktemp("wide"), 48)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Tokens of every forward pass, without padding, counted at the model itself."""
    from transformers import LlamaModel

    counts: list[int] = []
    original = LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, attention_mask: Any = None, **options: Any) -> Any:
        width = input_ids.shape[1]
        counts.append(
            int(attention_mask[:, -width:].sum()) if attention_mask is not None else input_ids.numel()
        )
        return original(self, input_ids=input_ids, attention_mask=attention_mask, **options)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    yield counts


def _run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(group, ["run", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("names", "limit", "pilot", "which"),
    [
        (CHOICES, "20", "0", ("--tier", "smoke")),
        # Without a tier, an untrained model writes as much as it may, which the lengths of references do not tell.
        (TEXTS, "5", "2", ("--languages", "swh_Latn,sw")),
    ],
)
def test_estimates_are_near_what_is_read(
    reader: Path, wide: Path, spm: Path, tmp_path: Path, read: list[int],
    names: tuple[str, ...], limit: str, pilot: str, which: tuple[str, str],
) -> None:  # fmt: skip
    output = tmp_path / "evaluation"
    options: list[str | Path] = [
        *(reader, "--mirror", wide, "--output", output, "--device", "cpu", "--max-length", "512"),
        *("--limit", limit, *which, "--spbleu-model", spm, "--spbleu-other", "--json"),
        *("--benchmarks", ",".join(names)),
    ]
    costs = json.loads(_run(*options, "--dry-run", "--pilot", pilot))
    assert [row["benchmark"] for row in costs] == list(names)
    read.clear()
    _run(*options)
    forwarded = dict.fromkeys(names, 0)
    for path in (output / "benchmarks").rglob("*.json"):
        done = read_unit(path)
        assert done is not None
        forwarded[done.benchmark] += done.details["tokens_forwarded"]
    # What a run records is what the model read, but for the few tokens of a check at its start.
    assert abs(sum(read) - sum(forwarded.values())) <= 6
    for row in costs:
        expected = row["prompt_tokens"] + row["new_tokens"]
        assert expected == pytest.approx(forwarded[row["benchmark"]], rel=0.25), row
    # What finished languages took makes it exact; what another number of items or length took scales, or counts nothing.
    again = json.loads(_run(*options, "--dry-run"))
    for row in again:
        assert row["measured"] == row["languages"]
        expected = row["prompt_tokens"] + row["new_tokens"]
        assert expected == pytest.approx(forwarded[row["benchmark"]], abs=2), row
    for row in json.loads(_run(*options, "--dry-run", "--max-length", "400")):
        assert row["measured"] == 0


def test_a_sample_of_the_items_shows_what_they_share(
    reader: Path, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large benchmarks only some items are looked at, and all begin with the same worked examples."""
    monkeypatch.setattr(cost, "_ITEMS", 24)
    options: list[str | Path] = [
        *(reader, "--mirror", wide, "--output", tmp_path / "evaluation", "--device", "cpu", "--json"),
        *("--tier", "smoke", "--limit", "40", "--max-length", "512", "--benchmarks", "sib200_emma"),
    ]
    (row,) = json.loads(_run(*options, "--dry-run"))
    _run(*options)
    done = [read_unit(path) for path in (tmp_path / "evaluation" / "benchmarks").rglob("*.json")]
    assert row["items"] == sum(unit.details["items"] for unit in done if unit) > 2 * 24
    read = sum(unit.details["tokens_forwarded"] for unit in done if unit)
    assert row["prompt_tokens"] == pytest.approx(read, rel=0.25)


def test_a_part_of_a_language_stands_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 items 50 are looked at: what all begin with is read once, and a batch writes until its longest answer ends."""
    unit: Any = SimpleNamespace(name="one")
    settings = SimpleNamespace(backend="transformers", batch_size=8, budget=0)
    runner: Any = SimpleNamespace(window=512, model_settings=settings)
    items = [
        cost._Asked(((*range(1000, 1100), *range(10 * place, 10 * place + 10)),), 1) for place in range(50)
    ]
    monkeypatch.setattr(cost, "_ask", lambda *_: (1000, items))
    found = cost._languages(runner, [unit], None, [])["one"]
    assert found.read == pytest.approx(100 + 1000 * 10, rel=0.25) and found.new == 0

    answers = [
        cost._Asked(item.rows, 1, answer=10 + 20 * (place % 2), cap=64) for place, item in enumerate(items)
    ]
    monkeypatch.setattr(cost, "_ask", lambda *_: (1000, answers))
    # One of eight is long, but for one batch in 256; the token after the prompt comes with reading it.
    expected = 1000 * (30 - 20 / 2**8 - 1)
    assert cost._languages(runner, [unit], None, [])["one"].new == pytest.approx(expected)


def test_lm_eval_s_own_tasks_are_estimated(reader: Path, tmp_path: Path, read: list[int]) -> None:
    mirror = write_harness_mirror(tmp_path / "hub")
    names = "multiblimp_abk,hellaswag,arc_easy,mmlu_anatomy"
    options: list[str | Path] = [
        *(reader, "--mirror", mirror, "--output", tmp_path / "evaluation", "--device", "cpu", "--json"),
        *("--benchmarks", ",".join(f"lm_eval:{name}" for name in names.split(","))),
    ]
    costs = json.loads(_run(*options, "--dry-run"))
    assert [row["benchmark"] for row in costs] == [
        "lm_eval.multiblimp", "lm_eval.hellaswag", "lm_eval.arc_easy", "lm_eval.mmlu",
    ]  # fmt: skip
    read.clear()
    _run(*options)
    assert sum(row["prompt_tokens"] for row in costs) == pytest.approx(sum(read), rel=0.25)


def test_expected_longest_answer() -> None:
    draw = np.random.default_rng(0)
    lengths = [3.0, 10.0, 11.0, 40.0]
    for count in (1, 2, 7):
        simulated = draw.choice(lengths, size=(20000, count)).max(axis=1).mean()
        assert _longest_of(lengths, count) == pytest.approx(simulated, rel=0.02)
