"""COMET by its own package, on tiny checkpoints that it makes (`make test-comet` installs it, in its own environment)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from emma.base.errors import UserError
from emma.commands.evaluate import group
from emma.tools.evaluation.benchmarks.records import read_samples, unit_file
from emma.tools.evaluation.quality.comet import Comet
from emma.tools.evaluation.quality.texts import Translation
from emma.tools.evaluation.results import read_results
from tests.tools.evaluation.quality.saved_outputs import MODEL, write_evaluation
from tests.tools.evaluation.tiny_model import TEXTS

SCRIPT = Path(__file__).with_name("tiny_comet.py")
ROWS = [
    Translation(TEXTS["eng_Latn"], TEXTS["spa_Latn"], "Todos los seres humanos nacen libres."),
    Translation("All human beings.", "Todos", TEXTS["spa_Latn"]),
    Translation(TEXTS["eng_Latn"], TEXTS["rus_Cyrl"], TEXTS["spa_Latn"]),
]


@pytest.fixture(scope="session")
def python() -> Path:
    found = os.environ.get("EMMA_COMET_PYTHON")
    if not found:
        pytest.skip("no environment with COMET; `make test-comet` makes one")
    return Path(found).absolute()


@pytest.fixture(scope="session")
def models(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comet")
    subprocess.run([python, "-P", SCRIPT, "make", folder], check=True)
    return folder


def packages_own(python: Path, checkpoint: Path, encoder: Path) -> list[float]:
    samples = [{"src": row.source, "mt": row.output, "ref": row.reference} for row in ROWS]
    found = subprocess.run(
        [python, "-P", SCRIPT, "predict", checkpoint, encoder],
        input=json.dumps(samples),
        capture_output=True,
        text=True,
        check=True,
    )
    scores: list[float] = json.loads(found.stdout.splitlines()[-1])
    return scores


@pytest.mark.comet
@pytest.mark.parametrize("key", ["comet", "xcomet"])
def test_scores_are_those_of_the_packages_predict(python: Path, models: Path, key: str) -> None:
    expected = packages_own(python, models / key / "checkpoints" / "model.ckpt", models / "encoder")
    assert len(set(expected)) == 3
    metric = Comet(key, models / key, python, encoder_folder=models / "encoder", batch=2, device="cpu")
    assert metric.score(ROWS) == pytest.approx(expected, abs=1e-5)
    # The process stays for the next language.
    process = metric._process
    assert metric.score(ROWS[:1]) == pytest.approx(expected[:1], abs=1e-5) and metric._process is process
    metric.close()
    assert process is not None and process.returncode == 0


@pytest.mark.comet
def test_saved_translations_get_their_scores(python: Path, models: Path, tmp_path: Path) -> None:
    rows = [(row.source, row.output, row.reference) for row in ROWS]
    folder = write_evaluation(
        tmp_path / "evaluation",
        {
            ("flores200_eng_x", "eng_Latn-spa_Latn"): [*rows, (rows[0][0], " ", rows[0][2])],
            ("flores200_eng_x", "eng_Latn-fon_Latn"): rows,
        },
    )
    arguments = [
        str(folder),
        "--metric",
        f"comet={models / 'comet'}",
        "--encoder",
        f"comet={models / 'encoder'}",
    ]
    CliRunner().invoke(
        group,
        ["quality", *arguments, "--comet-python", str(python), "--device", "cpu"],
        catch_exceptions=False,
    )
    found = {(row.language, row.metric): row for row in read_results(folder)}
    expected = packages_own(python, models / "comet" / "checkpoints" / "model.ckpt", models / "encoder")
    path = unit_file(folder, MODEL, "flores200_eng_x", "eng_Latn-spa_Latn")
    assert [sample["scores"]["comet"] for sample in read_samples(path)] == pytest.approx(
        [*expected, 0], abs=1e-5
    )
    assert found["eng_Latn-fon_Latn", "comet_unseen"].value == pytest.approx(sum(expected) / 3, abs=1e-5)
    assert ("eng_Latn-fon_Latn", "comet") not in found and ("eng_Latn-spa_Latn", "comet_unseen") not in found
    assert "regression_metric|encoder:xlm-r|sha256:" in found["eng_Latn-spa_Latn", "comet"].signature
    assert "unbabel-comet:2.2.7|empty:0|seen:yes" in found["eng_Latn-spa_Latn", "comet"].signature


@pytest.mark.comet
def test_checkpoints_that_are_not_whole_or_more_than_tensors(
    python: Path, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "comet", tmp_path / "comet")
    checkpoint = tmp_path / "comet" / "checkpoints" / "model.ckpt"
    rewrite = (
        "import sys, torch; p = sys.argv[1]; c = torch.load(p, weights_only=False); {}; torch.save(c, p)"
    )
    lacking = rewrite.format(
        "c['state_dict'] = {k: v for k, v in c['state_dict'].items() if 'estimator' not in k}"
    )
    subprocess.run([python, "-c", lacking, checkpoint], check=True)
    with pytest.raises(UserError, match=r"tensors are not in it; the first is estimator"):
        Comet("comet", tmp_path / "comet", python, encoder_folder=models / "encoder", device="cpu").score(
            ROWS
        )
    shutil.copyfile(models / "comet" / "checkpoints" / "model.ckpt", checkpoint)
    subprocess.run(
        [python, "-c", rewrite.format("import fractions; c['x'] = fractions.Fraction(1)"), checkpoint],
        check=True,
    )
    arguments = ("comet", tmp_path / "comet", python)
    with pytest.raises(UserError, match="--trust-checkpoints"):
        Comet(*arguments, encoder_folder=models / "encoder", device="cpu").score(ROWS)
    trusting = Comet(*arguments, encoder_folder=models / "encoder", device="cpu", trusted=True)
    assert len(trusting.score(ROWS)) == 3
    trusting.close()
    with pytest.raises(UserError, match=r"Give the folder of xlm-roberta-large with --encoder comet=FOLDER"):
        Comet("comet", models / "comet", python, device="cpu").score(ROWS)


def test_what_is_missing_is_named_with_its_fix(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"not a COMET model, which has hparams\.yaml and checkpoints/model\.ckpt"
    ):
        Comet("comet", tmp_path, None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "model.ckpt").touch()
    (tmp_path / "hparams.yaml").write_text("class_identifier: regression_metric\n")
    with pytest.raises(UserError, match=r"hparams\.yaml: no pretrained_model"):
        Comet("comet", tmp_path, None)
    (tmp_path / "hparams.yaml").write_text(
        "class_identifier: regression_metric\npretrained_model: xlm-roberta-large\n"
    )
    with pytest.raises(
        UserError, match=r"class_identifier is regression_metric, but `xcomet` stands for xcomet_metric"
    ):
        Comet("xcomet", tmp_path, None)
    with pytest.raises(
        UserError, match=r"needs unbabel-comet.*pip install unbabel-comet==2\.2\.7 'setuptools<81'; then give"
    ):
        Comet("comet", tmp_path, None)
    with pytest.raises(UserError, match=r"--comet-python .*nowhere: no such file"):
        Comet("comet", tmp_path, tmp_path / "nowhere")
    # This environment has transformers 5, so it cannot have COMET.
    with pytest.raises(UserError, match=r"unbabel-comet is not installed there\. Fix: python -m venv"):
        Comet("comet", tmp_path, Path(sys.executable))
    with pytest.raises(UserError, match=r"contains no config\.json; give the folder of xlm-roberta-large"):
        Comet("comet", tmp_path, Path(sys.executable), encoder_folder=tmp_path)
