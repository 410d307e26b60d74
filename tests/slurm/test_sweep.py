"""Trials of a sweep: design, recipes, state, results, plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.recipes.compose import list_names
from emma.recipes.load import load_recipe, load_sweep
from emma.recipes.schema.sweep import Sweep
from emma.slurm.history import History
from emma.slurm.results import best, importance, results, results_text
from emma.slurm.results_page import write_results
from emma.slurm.submit_sweep import open_sweep, plan_sweep
from emma.slurm.sweep import SweepFolder, design
from emma.slurm.trial import begin, mix_folder
from emma.tools.runs.metrics import append_metrics
from emma.tools.runs.run_folder import RunFolder
from tests.slurm.conftest import MakeRecipe
from tests.tools.runs.test_checkpoints import save

pytestmark = pytest.mark.usefixtures("without_slurm")

GRID: dict[str, Any] = {
    "run": "small.yaml",
    "parameters": {
        "schedule.learning_rate": {"values": [1e-3, 3e-3, 1e-2]},
        "data.mix.components.monolingual.share": {"values": [1.0, 2.0]},
    },
    "objective": {"groups": ["low-*"]},
    "constraints": [{"groups": ["english"], "at_most": 2.0}],
}


def write(folder: Path, **changes: Any) -> str:
    path = folder / "search.yaml"
    yaml = YAML(typ="safe")
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump({**GRID, **changes}, path)
    return str(path)


def finish(folder: SweepFolder, number: int, low: float, english: float, *, step: int = 10) -> None:
    path = begin(folder.path, number)
    run = RunFolder(path)
    append_metrics(run.metrics_file, {"step": step, "loss": low, "tokens_per_second_per_gpu": 1.0})
    groups = {"low-a": low - 0.5, "low-b": low + 0.5, "english": english, "high": 9.0}
    append_metrics(run.metrics_file, {"step": step, "validation": groups})
    if step == 10:
        save(run.checkpoints, 10)


@pytest.fixture
def folder(make_recipe: MakeRecipe, tmp_path: Path) -> SweepFolder:
    make_recipe()
    opened = open_sweep(write(tmp_path))
    opened.write()
    return opened


def test_shipped_sweeps_and_all_their_trials_are_valid() -> None:
    for name in list_names("sweeps"):
        sweep = load_sweep(name)
        points = design(sweep)
        assert points is not None and sweep.description
        folder = SweepFolder.of(sweep)
        assert len({folder.recipe(n, point).sha256 for n, point in enumerate(points)}) == len(points)


def test_a_grid_has_every_combination_once(folder: SweepFolder) -> None:
    points = design(folder.sweep)
    assert points is not None and len({tuple(point.values()) for point in points}) == 6 == folder.count


def test_random_points_keep_their_bounds_and_do_not_depend_on_the_number_of_trials() -> None:
    parameters = {
        "schedule.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "schedule.warmup_steps": {"low": 0, "high": 5, "integer": True},
        "precision": {"values": ["bf16", "fp32"]},
    }

    def points(trials: int) -> list[dict[str, Any]]:
        sweep = Sweep.model_validate(
            {"name": "x", "run": "demo", "parameters": parameters, "search": "random", "trials": trials}
        )
        return design(sweep) or []

    many = points(200)
    assert many[:20] == points(20)
    rates = [point["schedule.learning_rate"] for point in many]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert 0.35 < sum(rate < 1e-4 for rate in rates) / 200 < 0.65, "even over the logarithm"
    assert {point["schedule.warmup_steps"] for point in many} == set(range(6))


def test_a_trial_is_a_run_with_its_own_folder_and_a_mix_named_by_its_content(folder: SweepFolder) -> None:
    points = design(folder.sweep)
    assert points is not None
    recipes = [folder.recipe(number, point) for number, point in enumerate(points)]
    assert recipes[2].schedule.learning_rate == 3e-3 and recipes[2].run_folder == folder.path / "trial-0002"
    assert len({recipe.mix_folder for recipe in recipes}) == 2, "trials with the same data share a mix"
    run = begin(folder.path, 3)
    assert load_recipe(run).sha256 == recipes[3].sha256
    assert read_json(run / "trial.json")["parameters"] == points[3]
    assert mix_folder(folder.path, 3) == recipes[3].mix_folder.absolute()


def test_settings_move_several_keys_together(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    make_recipe()
    batch = {"settings": {"small": {"batch.global": 8, "schedule.steps": 20}, "large": {"batch.global": 16}}}
    opened = open_sweep(write(tmp_path, parameters={"batch": batch}, constraints=[]))
    small = opened.recipe(0, {"batch": "small"})
    assert (small.batch.global_, small.schedule.steps) == (8, 20)


def test_only_what_has_no_result_is_submitted(folder: SweepFolder, tmp_path: Path) -> None:
    finish(folder, 0, 3.0, 1.0)
    finish(folder, 3, 2.0, 1.0, step=5)
    failed = begin(folder.path, 4)
    for _ in range(3):
        History(failed).add("began", job="7", restart=0, launch=1, step=0)
    states = [trial.state for trial in folder.trials()]
    assert states == ["finished", "waiting", "waiting", "begun", "failed", "waiting"]
    assert plan_sweep(folder).numbers == [1, 2, 3, 5]
    plan = plan_sweep(open_sweep(str(folder.path)), retry_failed=True, concurrent=2)
    assert plan.array == "1,2,3,4,5%2"
    assert "6: 1 with a result" in plan.summary()


def test_the_best_keeps_the_constraints(folder: SweepFolder) -> None:
    for number, (low, english) in enumerate([(3.0, 1.0), (1.0, 2.5), (2.0, 1.9), (2.5, 1.0), (4.0, 1.0)]):
        finish(folder, number, low, english)
    finish(folder, 5, 0.5, 0.5, step=5)
    found = write_results(folder)
    winner = best(folder.sweep, found)
    assert winner is not None and winner.trial.number == 2 and winner.objective == 2.0
    text = results_text(folder, found)
    assert "best: trial 2, objective 2.00000, schedule.learning_rate=0.003" in text
    table = pq.read_table(folder.path / "results.parquet").to_pylist()
    assert len(table) == 6 and table[1]["feasible"] is False and table[5]["state"] == "begun"
    page = (folder.path / "results.html").read_text()
    assert page.count("<polyline") == 5 and "best: trial 2 with 2.00000" in page


def test_importance_is_the_share_of_variance(folder: SweepFolder) -> None:
    points = design(folder.sweep) or []
    for number, point in enumerate(points):
        finish(folder, number, float(point["data.mix.components.monolingual.share"]), 1.0)
    shares = importance(folder.sweep, results(folder))
    assert shares == pytest.approx(
        {"schedule.learning_rate": 0.0, "data.mix.components.monolingual.share": 1.0}
    )


def test_a_trial_that_diverged_has_no_objective(folder: SweepFolder) -> None:
    path = begin(folder.path, 0)
    append_metrics(
        RunFolder(path).metrics_file, {"step": 10, "validation": {"low-a": float("nan"), "english": 1.0}}
    )
    assert results(folder)[0].objective is None


def test_another_sweep_in_the_same_folder_is_refused(folder: SweepFolder, tmp_path: Path) -> None:
    open_sweep(write(tmp_path, concurrent=1), ["cluster.slurm.partition=other"]).write()
    with pytest.raises(UserError, match="this folder holds another sweep"):
        open_sweep(write(tmp_path), ["schedule.steps=20"]).write()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {}}, "parameters is empty"),
        ({"parameters": {"schedule.learning_rate": {"low": 1e-5, "high": 1e-3}}}, "a grid needs values"),
        ({"parameters": {"seed": {"values": [1, 1]}}}, "repetitions"),
        (
            {"parameters": {"seed": {"values": [1], "low": 1.0}}},
            "give one of values, settings, or low and high",
        ),
        ({"overrides": {"schedule.learning_rate": 1e-4}}, "in parameters and in overrides"),
        ({"search": "random"}, "trials goes with every search but grid"),
        ({"pruning": True}, "pruning needs one of Optuna's samplers"),
        ({"constraints": [{"groups": ["english"]}]}, "at_most or at_least"),
        ({"objectiv": {}}, "did you mean `objective`"),
        ({"objective": {"metric": "evaluation"}}, "benchmark and score go with metric: evaluation"),
        ({"objective": {"benchmark": "x", "score": "y"}}, "benchmark and score go with metric: evaluation"),
        (
            {
                "search": "tpe",
                "trials": 3,
                "pruning": "asha",
                "objective": {"metric": "evaluation", "benchmark": "x", "score": "y"},
            },
            "pruning needs an objective, and constraints, that a trial has on the way",
        ),
    ],
)
def test_wrong_sweeps_are_refused(
    changes: dict[str, Any], message: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    make_recipe()
    with pytest.raises(UserError, match=message):
        open_sweep(write(tmp_path, **changes))


def test_a_key_that_no_recipe_has_is_found_before_anything_is_submitted(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    make_recipe()
    with pytest.raises(UserError, match="unknown key"):
        plan_sweep(open_sweep(write(tmp_path, parameters={"schedule.learningrate": {"values": [1]}})))


def test_trials_that_need_other_nodes_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    make_recipe()
    sweep = open_sweep(write(tmp_path, parameters={"cluster.gpus_per_node": {"values": [1, 2]}}))
    with pytest.raises(UserError, match="need the same nodes and ranks"):
        plan_sweep(sweep)


EVALUATED: dict[str, Any] = {
    "objective": {
        "metric": "evaluation",
        "benchmark": "heldout/*",
        "score": "bits_per_byte",
        "groups": ["fin_*", "est_*"],
    },
    "constraints": [],
}


def evaluate(folder: SweepFolder, number: int, values: dict[str, float]) -> None:
    """The table that an evaluation leaves, with the base model's rows beside the trial's."""
    rows = []
    for model in (f"trial-{number:04d}/step-10", "base"):
        for language, value in values.items():
            own = value if model != "base" else 99.0
            rows.append(
                {
                    "model": model,
                    "benchmark": "heldout/monolingual",
                    "language": language,
                    "metric": "bits_per_byte",
                }
                | {"value": own}
            )
    file = folder.folder(number) / "evaluation" / "results.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_scores_of_an_evaluation_are_an_objective(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    make_recipe()
    folder = open_sweep(write(tmp_path, **EVALUATED))
    folder.write()
    for number in (0, 1):
        finish(folder, number, 1.0, 1.0)
    assert folder.trial(0).state == "begun", "trained, but not evaluated"
    evaluate(folder, 0, {"fin_Latn": 1.0, "est_Latn": 2.0, "eng_Latn": 50.0})
    evaluate(folder, 1, {"fin_Latn": 1.0, "est_Latn": 1.5, "eng_Latn": 50.0})
    found = results(folder)
    assert [found[0].objective, found[1].objective] == [1.5, 1.25] and found[0].trial.state == "finished"
    winner = best(folder.sweep, found)
    assert winner is not None and winner.trial.number == 1
    script = plan_sweep(folder).script.text
    assert 'emma.slurm.trial evaluate "$sweep"' in script


def test_a_score_that_no_evaluation_has_is_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    make_recipe()
    objective = {**EVALUATED["objective"], "score": "accuracy"}
    folder = open_sweep(write(tmp_path, objective=objective, constraints=[]))
    folder.write()
    finish(folder, 0, 1.0, 1.0)
    evaluate(folder, 0, {"fin_Latn": 1.0})
    with pytest.raises(
        UserError, match=r"no accuracy of heldout/\*.*name one of heldout/monolingual bits_per_byte"
    ):
        results(folder)


def test_an_axis_of_many_names_is_left_out_of_the_plot(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    make_recipe()

    def page(name: str, count: int) -> str:
        settings = {f"mix-{number}": {"data.mix.seed": number} for number in range(count)}
        folder = open_sweep(write(tmp_path, name=name, parameters={"mix": {"settings": settings}}))
        folder.write()
        finish(folder, 0, 3.0, 1.0)
        write_results(folder)
        return (folder.path / "results.html").read_text()

    assert "parallel coordinates" in page("few", 12)
    assert "parallel coordinates" not in page("many", 13)
