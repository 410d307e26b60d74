"""A run whose mix makes a base forget its English: its guard ends it, and the phase that follows brings English back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.mix.build import build_mix
from emma.tools.mix.prepare import MixSettings
from emma.tools.mix.replay import Replayed
from emma.tools.pack.plan import PackSettings
from emma.tools.pack.run import pack_store
from emma.tools.pack.tokenizer_file import TokenizerFile
from emma.tools.report.guard import guard_sentences
from emma.tools.report.records import read_run
from emma.tools.runs.checkpoints import complete_steps
from emma.tools.runs.decision import Decision, phases_after, read_decision
from emma.tools.runs.forgetting import Look
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.replay import phase_of
from tests.command_line import emma
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_corpus, make_tiny_mix
from tests.tiny_text import train_tokenizer
from tests.training_run import train_run

ENGLISH, BOUND = "language-eng_Latn", 0.02
STEPS, BATCH, LENGTH = 60, 8, 32
RATE = "warmup_steps: 0, decay: constant, min_learning_rate: 0"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file over a packed store, and a base that has read English alone."""
    folder = tmp_path_factory.mktemp("forgetting")
    train_tokenizer(folder / "tokenizer", 512)
    make_tiny_corpus(folder / "corpus", 400)
    data = {
        "name": "foreign",
        "pack": {"components": {"monolingual": {"kind": "text"}}, "engine": "tokenizers"},
        "mix": {
            # Two percent of the mix is English.
            "components": {"monolingual": {"share": 1, "max_epochs": 2, "factor_of": {"eng_Latn": 0.1}}},
            "validation": {
                "by_component": False,
                "by_category": False,
                "languages": ["eng_Latn", "rus_Cyrl"],
            },
        },
    }
    path = write_small_run(folder, data, folder / "tokenizer")
    recipe = load_recipe(path)
    file = TokenizerFile(recipe.model.tokenizer, recipe.model.vocab_size)
    pack_store(PackSettings(recipe.data.pack, file, folder / "corpus", folder / "store", "0" * 64), workers=1)
    english = (
        "name=english",
        "data.name=english",
        "data.mix.components.monolingual.include=[eng_Latn]",
        "data.mix.components.monolingual.max_epochs=100",
        "data.mix.validation.languages=[eng_Latn]",
        f"schedule={{steps: 20, learning_rate: 3e-3, {RATE}}}",
        "checkpoint.interval=1000",
    )
    base = load_recipe(path, english)
    build_mix(MixSettings.of_recipe(base))
    train_run(base)
    return path


def overrides(small: Path, name: str) -> list[str]:
    return [
        f"name={name}",
        f"start={{mode: weights, checkpoint: '{small.parent / 'runs' / 'english'}'}}",
        f"schedule={{steps: {STEPS}, learning_rate: 2e-3, {RATE}}}",
        "validation={interval: 5, samples: null}",
        # (So small a model forgets in a few steps, and takes most of the phase to come back.)
        f"guard={{groups: {{{ENGLISH}: {BOUND}}}, action: replay, replay: {{settle: 0.9}}}}",
    ]


def rises(run: RunFolder) -> dict[int, float]:
    return {
        row["step"]: row["guard"][0]["rise"] for row in read_metrics(run.metrics_file)[1] if "guard" in row
    }


def test_a_phase_is_the_rest_of_its_run_and_another_one_the_rest_of_that(tmp_path: Path) -> None:
    tiny = make_tiny_mix(tmp_path / "tiny", samples=40, sequence_length=LENGTH)
    path = write_small_run(tmp_path, tiny.data.model_dump(mode="json", by_alias=True), tiny.tokenizer)
    group = "component-bilingual"
    guard = (
        f"groups: {{{group}: 0.01}}, action: replay, false_alarms: 0.04, replay: {{settle: 0.3, phases: 2}}"
    )
    recipe = load_recipe(
        path,
        [f"paths.store={tiny.store}", "start={mode: weights, checkpoint: base}", f"guard={{{guard}}}"],
    )
    build_mix(MixSettings.of_recipe(recipe))

    def after(recipe: Recipe, step: int, rise: float) -> tuple[Recipe, Replayed]:
        look = Look(step, group, 0.01, rise, 0.001, 0.011, 0.001, 50, True)
        return phase_of(recipe, recipe.run_folder, Decision(step, "replay", [look]))

    first, numbers = after(recipe, 4, 0.05)
    assert (numbers.consumed_samples, numbers.samples, numbers.parts) == (4 * 8, 6 * 8, {group: 0.25})
    assert (first.name, first.data.name) == ("small-replay1", "small-replay1")
    assert (first.schedule.steps, first.schedule.offset) == (6, 4)
    assert (first.schedule.curve_steps, first.schedule.learning_rate) == (10, recipe.schedule.learning_rate)
    assert (first.start.mode, str(first.start.checkpoint)) == ("phase", str(recipe.run_folder))
    assert first.start.step == 4 and first.guard is not None
    assert (first.guard.action, first.guard.replay.phases, first.guard.from_step) == ("replay", 1, 2)
    assert first.guard.false_alarms == pytest.approx(0.04 * 0.6) and first.guard.groups == {group: 0.01}
    assert str(first.guard.base) == str(recipe.run_folder)

    build_mix(MixSettings.of_recipe(first))
    second, numbers = after(first, 2, 0.012)
    assert (numbers.consumed_samples, numbers.samples, numbers.parts) == (2 * 8, 4 * 8, {group: 0.05})
    assert (second.name, second.schedule.steps, second.schedule.offset) == ("small-replay2", 4, 6)
    assert second.guard is not None and second.guard.action == "stop"
    assert second.guard.false_alarms == pytest.approx(0.04 * 0.4)
    assert str(second.guard.base) == str(recipe.run_folder)
    consumed = second.data.mix.exclude_consumed
    assert [(each.mix, each.samples) for each in consumed] == [
        (str(recipe.mix_folder), 4 * 8),
        (str(first.mix_folder), 2 * 8),
    ]


@pytest.mark.slow
def test_a_run_that_forgets_english_goes_on_as_a_phase_that_does_not(small: Path) -> None:
    """One call of `emma train` over torchrun: two launches, the second in the phase."""
    given = overrides(small, "forgets")
    recipe = load_recipe(small, given)
    build_mix(MixSettings.of_recipe(recipe))
    answer = emma("train", str(small), *given)
    assert answer.code == 0, answer.err[-3000:]
    run = RunFolder(recipe.run_folder)
    decision = read_decision(run.path)
    assert decision is not None and decision.phase == "forgets-replay1" and decision.step < STEPS
    assert complete_steps(run.checkpoints)[-1] == decision.step
    (folder,) = phases_after(run.path)
    phase, began = RunFolder(folder), load_recipe(folder)
    assert (began.start.mode, began.start.step) == ("phase", decision.step)
    assert began.schedule.steps == STEPS - decision.step and phase.finished(began)

    # English is above its bound where the run ends and where the phase begins, and within it at the end.
    before, after = rises(run), rises(phase)
    assert before[decision.step] > BOUND and after[0] == pytest.approx(before[decision.step], abs=1e-3)
    assert after[began.schedule.steps] <= BOUND
    # The learning rate goes on along its curve, the moments are the run's.
    rate = {row["step"]: row["learning_rate"] for row in read_metrics(phase.metrics_file)[0]}
    assert set(rate.values()) == {2e-3}

    # A quarter of the phase more English, divided as the rule says; nothing consumed is read.
    plan = {row["language"]: row for row in pq.read_table(began.mix_folder / "plan.parquet").to_pylist()}
    first = {row["language"]: row for row in pq.read_table(recipe.mix_folder / "plan.parquet").to_pylist()}
    old = first["eng_Latn"]["tokens"] / sum(row["tokens"] for row in first.values())
    share = plan["eng_Latn"]["tokens"] / sum(row["tokens"] for row in plan.values())
    part = decision.replay["parts"][ENGLISH]
    assert part == 0.25 and share == pytest.approx(part + (1 - part) * old, abs=2e-4)
    starts, rows = (np.load(recipe.mix_folder / "train" / f"{name}.npy") for name in ("samples", "rows"))
    row, into = starts[decision.step * BATCH]
    consumed, read = rows[: row + (into > 0)], np.load(began.mix_folder / "train" / "rows.npy")
    places = [set(zip(r["shard"].tolist(), r["offset"].tolist(), strict=True)) for r in (consumed, read)]
    assert not places[0] & places[1]
    verified = emma("mix", "verify", str(folder))
    assert verified.code == 0 and "none of the" in verified.out + verified.err

    # The same command again has nothing to do; pages and card tell what happened.
    again = emma("train", str(small), *given)
    assert again.code == 0 and "nothing to do" in again.out and "training goes on in" in again.err
    for each in (run.path, folder):
        assert emma("report", "run", str(each)).code == 0
    page = (run.path / "report" / "index.html").read_text()
    assert (
        f"Ended at step {decision.step}" in page
        and "forgets-replay1" in page
        and "monolingual/eng_Latn" in page
    )
    assert "the phase that followed" in (folder / "report" / "index.html").read_text()
    assert "25 % more text of language-eng_Latn" in guard_sentences(read_run(folder))[0]


@pytest.mark.slow
def test_a_phase_is_written_anew_after_a_kill_and_refused_where_text_is_missing(small: Path) -> None:
    from emma.tools.training.replay import continued, write_phase

    run = RunFolder(small.parent / "runs" / "forgets")
    recipe = load_recipe(run.path)
    decision = read_decision(run.path)
    assert decision is not None
    phase = run.path.parent / "forgets-replay1" / "recipe.yaml"
    text = phase.read_bytes()
    unwritten = Decision(decision.step, "replay", decision.looks)
    unwritten.write(run.path)
    assert (
        write_phase(recipe, run.path, unwritten).to_dict() == decision.to_dict()
        and phase.read_bytes() == text
    )
    assert json.loads((run.path / "guard.json").read_text())["phase"] == "forgets-replay1"
    # Nothing at all may be left where every document was read; the run then stays ended, with the reason.
    unwritten.write(run.path)
    capped = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(
                update={
                    "mix": recipe.data.mix.model_copy(
                        update={
                            "components": {
                                "monolingual": recipe.data.mix.components["monolingual"].model_copy(
                                    update={"max_epochs": 0.01}
                                )
                            }
                        }
                    )
                }
            )
        }
    )
    with pytest.raises(UserError, match=r"A phase cannot follow: .*holds .* tokens at its caps"):
        continued(capped, run.path)
    refused = read_decision(run.path)
    assert refused is not None and refused.refused and refused.phase is None
