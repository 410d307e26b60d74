"""`emma train RUN --prove N` on real runs, right ones and wrong ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from emma.recipes.load import load_recipe
from emma.tools.prove.command import Proof
from emma.tools.prove.logged import read_logged
from emma.tools.prove.verdict import Verdict, default_tolerance, norm_tolerance
from emma.tools.runs.checkpoints import complete_steps
from emma.tools.runs.run_folder import RunFolder
from tests.command_line import emma
from tests.tools.prove.small import FAULTS, Small, make_small, train_faulty


def proof(small: Small, name: str, *overrides: str, steps: int = 12, **options: Any) -> Verdict:
    run, *rest = small.given(name, *overrides)
    return Proof(run, rest, steps, **options).prove()


def test_a_right_run_is_proven(trained: RunFolder) -> None:
    """Tensor 2 with sequence parallelism × data 2 against one device."""
    before = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*")}
    answer = emma("train", str(trained.path), "--prove", "12", "--json")
    assert answer.code == 0, answer.err
    result = orjson.loads(answer.out)
    assert result["passed"] and result["logged_by"] == "the run" and result["note"] is None
    assert [row["step"] for row in result["rows"]] == list(range(1, 13))
    assert result["largest"]["loss"] < 1e-5 and result["largest"]["grad_norm"] < 1e-5
    assert result["largest"]["learning_rate"] < 1e-12
    assert all(row["tokens"] == 256 for row in result["rows"])
    assert before == {path: path.stat().st_mtime_ns for path in trained.path.rglob("*")}


def test_steps_after_a_checkpoint_are_proven(trained: RunFolder) -> None:
    answer = emma("train", str(trained.path), "--prove", "7", "--from-step", "5")
    assert answer.code == 0, answer.err
    assert "proven: steps 6 to 12" in answer.out and "largest differences: loss" in answer.out


@pytest.mark.parametrize(
    ("value", "other", "first"),
    [
        ("beta2: 0.95", "beta2: 0.96", "step 3: loss"),
        ("learning_rate: 0.003", "learning_rate: 0.00303", "step 2: learning rate"),
        ("document_masking: true", "document_masking: false", "step 1: loss, grad norm"),
        ("weight_decay: 0.1", "weight_decay: 0.0", "step 3: loss"),
    ],
)
def test_a_recipe_that_says_something_else_is_not_proven(
    value: str, other: str, first: str, trained: RunFolder, tmp_path: Path
) -> None:
    """The run's own records, under a recipe that it was not trained with."""
    folder = tmp_path / "runs" / "trained"
    folder.mkdir(parents=True)
    for name in ("metrics.jsonl", "environment.json"):
        shutil.copy2(trained.path / name, folder)
    recipe = (trained.path / "recipe.yaml").read_text()
    assert value in recipe
    recipe = recipe.replace(value, other).replace(str(trained.path.parent), str(folder.parent))
    (folder / "recipe.yaml").write_text(recipe)
    answer = emma("train", str(folder), "--prove", "5")
    assert answer.code == 1
    assert f"not proven; they differ first at {first}" in answer.err and "≠" in answer.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prove", "13"], "step 13 is after the run's last, 12. Fix: --prove 12 or fewer"),
        (["--prove", "3", "--from-step", "7"], "step 7 of .* cannot be used: it does not exist"),
        (["--prove", "3", "--layers", "9"], "--layers 9, but the model has 4"),
        (["--prove", "3", "--layers", "2", "--from-step", "5"], "cannot be combined"),
        (["--prove", "3", "optimizer.beta1=0.8"], "this run has optimizer.beta1 = 0.9"),
        (["--prove", "3", "--prepare"], "--prove goes with none of"),
        (["--layers", "2"], "go with --prove"),
    ],
)
def test_what_cannot_be_proven_is_refused(options: list[str], message: str, trained: RunFolder) -> None:
    import re

    answer = emma("train", str(trained.path), *options)
    assert answer.code == 2
    assert re.search(message, answer.err), answer.err
    assert "Traceback" not in answer.err


def test_a_model_that_does_not_fit_is_refused_with_the_sum(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emma.tools.prove.command.available_bytes", lambda device: 1000)
    answer = emma("train", str(trained.path), "--prove", "3")
    assert answer.code == 2
    assert "needs 0.0 GiB on cpu, 213,568 parameters × 16 bytes" in answer.err


def test_a_mix_built_anew_is_refused(trained: RunFolder, small: Small, tmp_path: Path) -> None:
    mixes = small.folder / "mix"
    shutil.copytree(mixes / "tiny", mixes / "other", symlinks=True)
    facts = orjson.loads((mixes / "other/train/dataset.json").read_bytes())
    (mixes / "other/train/dataset.json").write_bytes(orjson.dumps(facts | {"mix_fingerprint": "another"}))
    folder = tmp_path / "trained"
    shutil.copytree(trained.path, folder)
    recipe = (folder / "recipe.yaml").read_text().replace("name: tiny", "name: other")
    (folder / "recipe.yaml").write_text(recipe.replace(str(trained.path.parent), str(tmp_path)))
    answer = emma("train", str(folder), "--prove", "3")
    assert answer.code == 2 and "mix another, but the run was trained on" in answer.err


def test_a_dry_run_says_what_it_takes(small: Small) -> None:
    answer = emma("train", *small.given("fresh"), "--prove", "3", "--dry-run")
    assert answer.code == 0, answer.err
    assert "213,568 parameters × 16 bytes" in answer.out and "Megatron, which trains them now" in answer.out
    assert not list((small.folder / "runs").glob("fresh*"))


def test_rows_are_read_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    """A killed launch logged to step 4; the next one began at 2 and has reached 3."""
    run = RunFolder(tmp_path)
    rows = [{"step": step, "loss": float(step)} for step in (1, 2, 3, 4)] + [{"step": 3, "loss": 33.0}]
    lines = b"\n".join(orjson.dumps(row) for row in [*rows, {"step": 3, "validation": {}}])
    run.metrics_file.write_bytes(lines + b'\n{"step": 4, "los')
    loads = [{"load": {"mode": "weights", "step": 70}}, {"load": {"mode": "resume", "step": 2}}]
    run.environment_file.write_bytes(orjson.dumps({"launches": loads}))
    logged = read_logged(run)
    assert {step: row["loss"] for step, row in logged.rows.items()} == {1: 1.0, 2: 2.0, 3: 33.0}
    assert logged.before == {1: 0, 2: 1, 3: 2} and logged.last == 3


@pytest.mark.parametrize(
    ("run", "tolerance"),
    [("demo", 1e-5), ("emma_llama3_8b_bi", 2e-2), ("emma_llama2_7b", 2e-2)],
)
def test_the_tolerance_follows_the_precision(run: str, tolerance: float) -> None:
    assert default_tolerance(load_recipe(run)) == tolerance
    assert default_tolerance(load_recipe("emma_llama3_8b_bi", ["layout=h100_64_fp8"])) == 1e-1
    bounds = [norm_tolerance(nats) for nats in (1e-5, 2e-2, 1e-1, 1.0)]
    assert bounds == pytest.approx([3e-4, 0.2, 0.2, 1.0])


@pytest.fixture(scope="session")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Whole documents with padding in every sample."""
    return make_small(tmp_path_factory.mktemp("padded"), "best_fit", steps=6, length=384)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, small: Small, padded: Small) -> None:
    """Megatron really trains with it."""
    case, given, name = small, [], fault.replace(" ", "-")
    match fault:
        case "mean per micro-batch":
            case = padded
        case "padding of the vocabulary":
            given = ["model.vocab_padding=80"]
        case "clipping":
            given = ["optimizer.clip_grad=2.3"]  # amid the norms: a bound below all of them cancels in AdamW
    train_faulty(case.recipe(name, *given), fault)
    verdict = proof(case, name, *given, steps=case.steps)
    assert not verdict.passed and verdict.first_fault
    assert verdict.largest["loss"] > 3e-5, "found by the loss alone, too"


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        ["cluster.gpus_per_node=4", "parallelism={tensor: 2, pipeline: 2, sequence: true}"],
        ["cluster.gpus_per_node=4", "parallelism={context: 2}"],
        ["batch.document_masking=false"],
        ["safety.skip_steps=[3,7]"],
        ["logging.interval=5"],
        [
            "optimizer.clip_grad=0",
            "schedule={steps: 12, learning_rate: 3e-3, warmup_steps: 0, decay: linear}",
        ],
        [
            "schedule={steps: 12, learning_rate: 3e-3, min_learning_rate: 1e-4, warmup_steps: 2, "
            "decay: wsd, wsd_decay_steps: 5}"
        ],
        [
            "schedule={steps: 12, learning_rate: 3e-3, warmup_steps: 2, decay: constant}",
            "model.vocab_padding=80",
        ],
    ],
    ids=["tp2-pp2", "dp2-cp2", "no masking", "skipped steps", "interval", "linear", "wsd", "constant"],
)
def test_right_runs_of_other_kinds_are_proven(
    given: list[str], small: Small, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.replace(" ", "-")
    train_faulty(small.recipe(name, *given))
    verdict = proof(small, name, *given)
    assert verdict.passed, verdict.text()


@pytest.mark.slow
def test_padding_and_tied_embeddings_are_proven(padded: Small, tmp_path: Path) -> None:
    layout = ("cluster.gpus_per_node=2", "parallelism={tensor: 2, sequence: true}")
    train_faulty(padded.recipe("padded", *layout))
    verdict = proof(padded, "padded", *layout, steps=6)
    assert verdict.passed, verdict.text()
    assert any(row.tokens < 8 * 384 for row in verdict.rows)
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64}
    parameters = {"rope_type": "llama3", "rope_theta": 500000.0, **rope}
    tied = make_small(tmp_path, rope_parameters=parameters, tie_word_embeddings=True)
    given = ("model.tie_embeddings=true", f"model.rope_scaling={orjson.dumps(rope).decode()}")
    train_faulty(tied.recipe("tied", *given))
    verdict = proof(tied, "tied", *given)
    assert verdict.passed, verdict.text()


@pytest.mark.slow
def test_later_runs_are_proven_with_their_moments(small: Small, trained: RunFolder) -> None:
    """A phase with a schedule and optimizer settings of its own, and the resumption of another run."""
    schedule = "schedule={steps: 12, learning_rate: 1e-3, warmup_steps: 3}"
    settings = "optimizer={beta1: 0.8, beta2: 0.99, epsilon: 1e-5, weight_decay: 0.3}"
    phase = (f"start={{mode: phase, checkpoint: '{trained.path}', step: 5}}", schedule, settings)
    train_faulty(small.recipe("phase", *phase))
    verdict = proof(small, "phase", *phase)
    assert verdict.passed, verdict.text()
    resumed = (f"start={{mode: resume, checkpoint: '{trained.path}', step: 5}}",)
    train_faulty(small.recipe("resumed", *resumed))
    verdict = proof(small, "resumed", *resumed, steps=7)
    assert verdict.passed and [row.step for row in verdict.rows] == list(range(6, 13)), verdict.text()


@pytest.mark.slow
def test_bf16_is_within_its_tolerance(small: Small) -> None:
    given = ("precision={name: bf16, compute: bf16}",)
    train_faulty(small.recipe("bf16", *given))
    verdict = proof(small, "bf16", *given)
    assert verdict.passed and verdict.tolerance == 2e-2, verdict.text()
    assert not proof(small, "bf16", *given, tolerance=1e-5).passed


@pytest.mark.slow
@pytest.mark.parametrize("begin", ["weights", "context", "layers", "scratch", "reference"])
def test_a_run_that_has_not_begun_is_trained_for_its_proof(begin: str, small: Small) -> None:
    """Through torchrun, as the command does; nothing is left but what was there."""
    given = ["cluster.gpus_per_node=2", "parallelism={tensor: 2, sequence: true}"]
    options = ["--prove", "3"]
    match begin:
        case "context":
            given[1] = "parallelism={context: 2}"
        case "layers":
            options += ["--layers", "2"]
        case "scratch":
            given += ["start={mode: scratch}"]
        case "reference":
            start = f"{{mode: weights, checkpoint: '{small.base}', reference: '{small.huggingface}'}}"
            given += [f"start={start}"]
    answer = emma("train", *small.given(f"fresh-{begin}", *given), *options, "--json")
    assert answer.code == 0, answer.err
    result = orjson.loads(answer.out)
    assert result["passed"] and result["logged_by"] == "a trial" and len(result["rows"]) == 3
    assert result["layers"] == (2 if begin == "layers" else 4)
    assert not list((small.folder / "runs").glob(f"fresh-{begin}*"))


@pytest.mark.slow
def test_a_trained_run_from_scratch_gets_its_first_weights_from_a_trial(small: Small) -> None:
    run = train_faulty(small.recipe("scratch", "start={mode: scratch}"))
    answer = emma("train", *small.given("scratch", "start={mode: scratch}"), "--prove", "12", "--json")
    assert answer.code == 0, answer.err
    assert orjson.loads(answer.out)["logged_by"] == "the run"
    assert complete_steps(run.checkpoints) == [5, 10, 12]
