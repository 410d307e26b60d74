"""An optimisation from its first call to its verdict, on a real store, with training replaced by a formula."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.recipes.load import load_recipe, load_sweep
from emma.recipes.schema.optimisation import Optimisation
from emma.slurm.submit_sweep import open_sweep
from emma.tools.mix.build import build_mix
from emma.tools.mix.prepare import MixSettings, expected_fingerprints
from emma.tools.mix.verify import verify_mix
from emma.tools.optimise import steps
from emma.tools.optimise.levers import Lever, keys_of, levers_of, shares_of
from emma.tools.optimise.outline import outline, outline_text
from emma.tools.optimise.proposal import _recipe
from emma.tools.optimise.steps import Done, Waiting, advance
from emma.tools.optimise.study import Study, Target
from tests.tools.optimise.conftest import MakeStudy, Trainer


def files(study: Study) -> dict[str, bytes]:
    """What an optimisation leaves, beside the trials' own folders."""
    paths = [
        *study.folder.glob("*.yaml"),
        *(p for p in study.results.iterdir() if not p.name.startswith(".")),
    ]
    return {str(path.relative_to(study.folder)): path.read_bytes() for path in sorted(paths)}


def test_a_whole_optimisation_ends_in_a_confirmed_mix_that_builds_and_verifies(make_study: MakeStudy) -> None:
    study = make_study(check={"seeds": 2})
    waiting = advance(study)
    assert isinstance(waiting, Waiting) and len(waiting.trials.missing) == 11
    assert f"emma sweep {waiting.sweep}" in waiting.text() and not study.results.joinpath("fit.json").exists()
    load_sweep(str(waiting.sweep))

    trainer = Trainer()
    trainer(waiting.sweep)
    second = advance(study)
    assert isinstance(second, Waiting) and second.sweep.name.startswith("check-")
    assert "Not checked yet" in (study.results / "proposal.yaml").read_text()

    done = advance(study, trainer)
    assert isinstance(done, Done) and done.verdict is not None
    found = done.verdict.proposal
    assert found.word == "confirmed" and not found.broken and done.broken == []
    assert found.measured < -0.005 and abs(found.measured - found.predicted) < 0.005
    text = done.text()
    assert "confirmed" in text and "pays:" in text
    assert "Checked with 2 new seeds: confirmed" in (study.results / "proposal.yaml").read_text()
    fit = json.loads((study.results / "fit.json").read_text())
    assert fit["groups"]["language-swh_Latn"]["own"] == "monolingual/high"
    assert fit["objective"]["held_out_rank"] > 0.7
    # Bits a byte, by the formula that stands for training.
    for row in pq.read_table(study.results / "proxies.parquet").to_pylist():
        share = row["share monolingual/low"]
        expected = 1 + (share + 0.05 * (1 - share)) ** -trainer.gain
        assert row["bits category-monolingual-low"] == pytest.approx(expected, rel=0.01)
    page = (study.results / "index.html").read_text()
    assert "no free lunch" in page and "confirmed" in page and "http" not in page
    front = pq.read_table(study.results / "front.parquet").to_pylist()
    assert [row["limits"] for row in front] == [0.0, 0.25, 0.5, 1.0, 1.5, 2.5]
    gains = [row["objective"] for row in front]
    assert all(after <= before + 1e-4 for before, after in pairwise(gains))

    # The proposal is a data recipe like any other.
    recipe = load_recipe(study.run, [f"data={study.results / 'proposal.yaml'}", *study.changes])
    assert recipe.data.name.startswith("tiny_opt_")
    settings = MixSettings.of_recipe(recipe)
    mix = build_mix(settings)
    assert verify_mix(mix.folder, fingerprint=expected_fingerprints(settings)[0]).faults == []
    planned = shares_of(Target.of(recipe, 0.0).levers)
    assert np.abs(planned - done.fit.proposal.shares).max() < 1e-5


def test_stopped_anywhere_and_called_again_it_ends_in_the_same_bytes(make_study: MakeStudy) -> None:
    whole = make_study()
    assert isinstance(advance(whole, Trainer()), Done)
    expected = files(whole)
    shutil.rmtree(whole.folder)
    trainer = Trainer()
    for stop in (1, 5, 11, 13):
        trainer.stop = stop
        with pytest.raises(KeyboardInterrupt):
            advance(make_study(), trainer)
    trainer.stop = 10**9
    assert isinstance(advance(make_study(), trainer), Done)
    # No trial is trained twice.
    assert len(trainer.trained) == len(set(trainer.trained))
    assert files(whole) == expected
    # Once more changes nothing, and neither does what a killed call left half done.
    for name in ("fit.json", "proposal.yaml", "index.html"):
        (whole.results / name).unlink()
    trainer.trained = ()
    assert isinstance(advance(make_study(), trainer), Done)
    assert files(whole) == expected and trainer.trained == ()


def test_another_objective_needs_no_new_proxy(make_study: MakeStudy) -> None:
    trainer = Trainer()
    trainer(advance(make_study()).sweep)  # type: ignore[union-attr]
    trained = len(trainer.trained)
    other = make_study("other", objective={"groups": ["component-bilingual"]})
    waiting = advance(other)
    assert isinstance(waiting, Waiting) and waiting.sweep.name.startswith("check-")
    assert len(trainer.trained) == trained
    fit = json.loads((other.results / "fit.json").read_text())
    assert fit["groups"]["component-bilingual"]["weight"] == 1.0
    # More proxies begin with the same ones.
    more = make_study("more", proxies=16)
    assert np.array_equal(more.design[:8], other.design)


def test_the_sweep_trains_what_was_designed(make_study: MakeStudy) -> None:
    study = make_study()
    folder = open_sweep(str(advance(study).sweep))  # type: ignore[union-attr]
    recipes = [folder.recipe(trial.number, trial.parameters or {}) for trial in folder.trials()]
    for recipe, shares in zip(recipes[3:], study.design, strict=True):
        plan = Target.of(recipe, 0.0).plan
        assert np.abs(shares_of(levers_of(recipe.data.mix, plan)) - shares).max() < 1e-4
        assert recipe.schedule.steps == 5 == recipe.validation.interval
    first, *others = recipes[:3]
    for other in others:
        same = other.model_copy(update={"name": first.name, "data": first.data})
        assert same.sha256 == first.sha256
        assert other.data.mix.model_copy(update={"seed": 0}) == first.data.mix.model_copy(update={"seed": 0})
    assert len({recipe.data.mix.seed for recipe in recipes[:3]}) == 3
    assert {recipe.data.mix.validation_seed for recipe in recipes} == {1234}


def test_diverged_and_missing_proxies_are_said(make_study: MakeStudy) -> None:
    study = make_study(proxies=10)
    trainer = Trainer(diverge=("mix-001",), stop=12)
    with pytest.raises(KeyboardInterrupt):
        advance(study, trainer)
    waiting = advance(study)
    assert isinstance(waiting, Waiting) and waiting.trials.missing == ["mix-009"]
    found = advance(study, partial=True)
    assert isinstance(found, Waiting)
    notes = json.loads((study.results / "fit.json").read_text())["notes"]
    assert any("mix-009 have no result" in note for note in notes)
    assert any("mix-001 diverged" in note and "not a random choice" in note for note in notes)
    assert "mix-001" not in pq.read_table(study.results / "proxies.parquet")["trial"].to_pylist()
    # What was checked of that is no check of what the last proxy makes of it.
    trainer.stop = 10**9
    trainer(found.sweep)
    assert isinstance(advance(study, partial=True), Done) and study.results.joinpath("check.json").exists()
    trainer(waiting.sweep)
    assert isinstance(advance(study), Waiting) and not study.results.joinpath("check.json").exists()
    # A trial that has validated and not saved its last step is not done.
    shutil.rmtree(waiting.sweep.with_suffix("") / "trial-0005" / "checkpoints")
    again = advance(study)
    assert isinstance(again, Waiting) and again.trials.missing == ["mix-002"]


@pytest.mark.slow
def test_nothing_to_gain_is_within_noise(make_study: MakeStudy) -> None:
    done = advance(make_study(), Trainer(gain=0.0))
    assert isinstance(done, Done) and done.broken == []
    assert done.verdict is None or done.verdict.proposal.word == "within noise"
    assert any("less than 3" in note for note in done.fit.notes())


def test_what_was_changed_by_hand_or_meanwhile_is_refused(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study()
    waiting = advance(study)
    assert isinstance(waiting, Waiting)
    text = waiting.sweep.read_text()
    waiting.sweep.write_text(text.replace("data.mix.seed: 1235", "data.mix.seed: 99"))
    with pytest.raises(UserError, match="was changed since it was written"):
        advance(study)
    waiting.sweep.write_text(text)
    Trainer()(waiting.sweep)
    other = [SimpleNamespace(name=name, fingerprint="other") for name in ("bilingual", "monolingual")]
    with monkeypatch.context() as patch:
        patch.setattr(steps, "open_store", lambda *_: other)
        with pytest.raises(UserError, match="has changed since the proxies were trained"):
            advance(study)
    mix = load_recipe(waiting.sweep.with_suffix("") / "trial-0002").mix_folder / "mix.json"
    judged = mix.read_text()
    facts = json.loads(judged)
    facts["groups"]["component-bilingual"]["documents"] += 1
    mix.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="hold other documents than those of"):
        advance(study)
    mix.write_text(judged)
    trial = waiting.sweep.with_suffix("") / "trial-0004" / "trial.json"
    facts = json.loads(trial.read_text())
    trial.write_text(json.dumps({**facts, "parameters": {"mix": "mix-007"}}))
    with pytest.raises(UserError, match=r"is the trial mix-007, but the sweep's is mix-001"):
        advance(study)


def test_settings_that_cannot_work_are_refused(make_study: MakeStudy) -> None:
    def message(**changes: object) -> str:
        with pytest.raises(UserError) as error:
            study = make_study(**changes)
            advance(study)
            study.objective_weights(study.fitted_groups())
        return str(error.value)

    assert "limits is empty" in message(limits=[])
    assert "is as long as the run" in message(proxy={})
    assert "data.mix.seed is set by the design" in message(proxy={"overrides": {"data.mix.seed": 3}})
    assert "'nothing' is none of" in message(fixed=["nothing"])
    assert "fewer than two shares" in message(fixed=["*"])
    assert "fits none of category-monolingual-high" in message(objective={"groups": ["x"]})
    assert "has none" in message(objective={"groups": ["*"], "weights": {"category-*": 1.0}})
    assert make_study(
        limits=[{"group": "language-eng_Latn", "worse": 0.01}, {"group": "langu*-x", "worse": 0.0}]
    )


def test_keys_of_the_command_line_that_the_design_varies_are_set_in_each_mix(make_study: MakeStudy) -> None:
    study = make_study(
        overrides=(
            "data.mix.components.bilingual.share=10",
            "data.mix.seed=77",
            "data.mix.share_tolerance=0.2",
        )
    )
    folder = open_sweep(str(advance(study).sweep))  # type: ignore[union-attr]
    recipes = [folder.recipe(trial.number, trial.parameters or {}) for trial in folder.trials()]
    assert [recipe.data.mix.seed for recipe in recipes[:4]] == [77, 78, 79, 77]
    assert {recipe.data.mix.share_tolerance for recipe in recipes} == {0.2}
    own, other = (shares_of(Target.of(recipe, 0.0).levers) for recipe in (recipes[0], recipes[3]))
    assert own[0] == pytest.approx(10 / 70, abs=1e-4)
    assert np.abs(other - study.design[0]).max() < 1e-4


def test_a_proposal_over_a_shipped_data_recipe_says_only_what_differs(tmp_path: Path) -> None:
    """Without the demo's store: what it would plan is made up, the recipe's text and its reading are real."""
    recipe = load_recipe("demo")
    names = {name: list(c.categories) or [None] for name, c in recipe.data.mix.components.items()}
    one = np.array([1000])
    levers = [
        Lever(name, category, one * 10**6, one * 10**7, 10**6, category is not None)
        for name, categories in names.items()
        for category in categories
    ]
    study = Study("demo", (), Optimisation(name="demo"))
    study.__dict__["target"] = SimpleNamespace(recipe=recipe, levers=levers, budget=10**6 * len(levers))
    keys = keys_of(
        levers, np.arange(1.0, 1 + len(levers)) / np.arange(1.0, 1 + len(levers)).sum(), study.target.budget
    )
    path = tmp_path / "proposal.yaml"
    path.write_text(_recipe(study, keys, "0123abcd"))
    data = load_recipe("demo", [f"data={path}"]).data
    assert data.name == "demo_opt_0123abcd" and path.read_text().startswith("base: demo\n")
    for key, value in keys.items():
        component, _, rest = key.partition(".")
        found = data.mix.components[component]
        assert (found.share if rest == "share" else found.categories[rest.split(".")[1]].factor) == value
    same = data.mix.model_dump()
    for name, component in same["components"].items():
        component["share"] = recipe.data.mix.components[name].share
        for category, values in component["categories"].items():
            values["factor"] = recipe.data.mix.components[name].categories[category].factor
    assert same == recipe.data.mix.model_dump()


def test_the_outline_says_what_the_caps_leave_and_writes_nothing(make_study: MakeStudy) -> None:
    study = make_study(objective={"groups": ["component-bilingual", "category-monolingual-low"]})
    lever = outline(study)["levers"][0]
    assert lever["name"] == "bilingual" and lever["may_grow"] == pytest.approx(1 / 0.4, rel=1e-3)
    tight = make_study(
        objective={"groups": ["component-bilingual", "category-monolingual-low"]},
        overrides=(f"data.mix.components.bilingual.max_epochs={1.1 * lever['epochs']}",),
    )
    caps = np.minimum(tight.target.caps, tight.proxy.caps)
    assert np.any(study.design > caps) and np.all(tight.design <= caps)
    found = outline(tight)
    assert found["levers"][0]["may_grow"] == pytest.approx(1.1, rel=1e-3)
    weights = {group["name"]: group["weight"] for group in found["groups"]}
    assert (
        found["objective_at_caps"] == pytest.approx(weights["component-bilingual"])
        and 0 < found["objective_at_caps"] < 1
    )
    assert (
        found["proxies"] | {"mixes": 8, "replicates": 3, "checks": 4, "tokens_each": 10_240}
        == found["proxies"]
    )
    text = outline_text(found)
    assert "× 1.10" in text and f"{100 * found['objective_at_caps']:.0f} %" in text
    assert not study.folder.exists()
