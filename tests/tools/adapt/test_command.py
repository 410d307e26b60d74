"""`emma init` from its options: the files that it writes load, plan, and are not overwritten unasked."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest

from emma.recipes.load import load_recipe
from tests.command_line import emma

WORDS = {
    "sw": "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa. Wote wamejaliwa akili na dhamiri",
    "yo": "Gbogbo ènìyàn ni a bí ní òmìnira; iyì àti ẹ̀tọ́ kọ̀ọ̀kan sì dọ́gba",
    "en": "All human beings are born free and equal in dignity and rights",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren",
}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw text"
    folder.mkdir()
    with (folder / "web.jsonl").open("wb") as handle:
        for language, text in WORDS.items():
            for number in range(60):
                handle.write(orjson.dumps({"text": f"{text} {number}. " * 20, "lang": language}) + b"\n")
    return folder


def options(raw: Path, *more: str) -> list[str]:
    return [
        "--text",
        str(raw),
        "--languages",
        "sw,Yoruba",
        "--yes",
        "--workers",
        "1",
        "--license",
        "CC0-1.0",
        *more,
    ]


def begin(folder: Path, raw: Path, *more: str) -> dict[str, object]:
    answer = emma("init", str(folder), *options(raw, *more), "--json")
    assert answer.code == 0, answer.err
    found: dict[str, object] = json.loads(answer.out)
    return found


def test_a_toy_run_on_this_machine(tmp_path: Path, raw: Path) -> None:
    folder = tmp_path / "my run"
    found = begin(folder, raw, "--base", "tiny", "--epochs", "2")
    rows = {row["code"]: row for row in found["languages"]}  # type: ignore[attr-defined]
    assert list(rows) == ["swh_Latn", "yor_Latn", "eng_Latn"]
    assert rows["yor_Latn"]["documents"] == 60
    assert rows["yor_Latn"]["bytes"] == sum(
        len(f"{WORDS['yo']} {number}. ".encode()) * 20 for number in range(60)
    )
    recipe = load_recipe(folder / "run.yaml")
    assert recipe.name == "my-run"
    assert recipe.data.corpus is not None
    assert recipe.data.corpus.languages.only == ["swh_Latn", "yor_Latn", "eng_Latn"]
    assert recipe.data.mix.components["monolingual"].max_epochs_of.keys() == {"eng_Latn"}
    own = sum(rows[code]["tokens"] for code in ("swh_Latn", "yor_Latn"))
    assert recipe.total_tokens == pytest.approx(2 * own / 0.8, abs=recipe.tokens_per_step)
    page = (folder / "NEXT.md").read_text()
    assert f"emma corpus build '{folder}/run.yaml'" in page
    plan = emma("plan", str(folder / "run.yaml"))
    assert plan.code == 0, plan.err


def test_nothing_is_overwritten_unasked(tmp_path: Path, raw: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, raw, "--base", "tiny", "--epochs", "2")
    before = (folder / "run.yaml").read_text()
    again = emma("init", str(folder), *options(raw, "--base", "tiny", "--epochs", "1"))
    assert again.code == 2
    assert "data.yaml, cluster.yaml, run.yaml, NEXT.md would be overwritten" in again.err
    assert (folder / "run.yaml").read_text() == before
    said = emma("init", str(folder), *options(raw, "--base", "tiny", "--epochs", "1", "--overwrite"))
    assert f"{folder / 'run.yaml'}: overwritten" in said.out
    assert f"{folder / 'cluster.yaml'}: as it was" in said.out


def test_a_dry_run_writes_nothing(tmp_path: Path, raw: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    answer = emma(
        "init", str(tmp_path / "run"), *options(raw, "--base", "tiny", "--epochs", "2", "--dry-run")
    )
    assert answer.code == 0, answer.err
    assert "run.yaml: would be written" in answer.out
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_large_base_gets_a_layout_that_fits(tmp_path: Path, raw: Path) -> None:
    folder = tmp_path / "run"
    more = (
        "--base",
        "llama3.1_8b",
        "--cluster",
        "leonardo",
        "--tokens",
        "6M",
        "--max-epochs",
        "1000",
        "--slurm",
        "account=a1",
    )
    found = begin(folder, raw, *more)
    plan = found["plan"]
    assert plan["memory_gib"]["total"] <= plan["memory_gib"]["limit"]  # type: ignore[index]
    recipe = load_recipe(folder / "run.yaml")
    assert (recipe.cluster.device, recipe.cluster.slurm.account, recipe.precision.compute) == (
        "a100",
        "a1",
        "bf16",
    )
    page = (folder / "NEXT.md").read_text()
    assert f"emma slurm submit {folder}/run.yaml" in page
    assert "hf download meta-llama/Llama-3.1-8B --local-dir base/Llama-3.1-8B" in page


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--base", "tiny"], "--epochs, --tokens or --gpu-hours is missing"),
        (["--base", "tiny", "--epochs", "1", "--tokens", "1M"], "three ways to say the budget"),
        (["--base", "tinny", "--epochs", "1"], "did you mean `tiny`"),
        (["--base", "tiny", "--cluster", "h100_9", "--epochs", "1"], "there is no cluster `h100_9`; did you mean `h100_"),
        (["--base", "llama3_8b", "--cluster", "leonardo", "--epochs", "1"], "add --slurm account="),
        (["--base", "tiny", "--gpu-hours", "3"], "nothing is published about the speed"),
        (["--base", "tiny", "--epochs", "9"], "--max-epochs 9"),
        (["--base", "tiny", "--epochs", "1", "--languages", "zul"], "no text in zul (Zulu)"),
    ],
)  # fmt: skip
def test_a_wish_that_cannot_be_met_is_one_message(
    tmp_path: Path, raw: Path, more: list[str], says: str
) -> None:
    answer = emma("init", str(tmp_path / "run"), *options(raw, *more))
    assert (answer.code, says in answer.err) == (2, True), answer.err
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".run*"))


def test_settling_needs_a_folder_that_was_begun(tmp_path: Path, raw: Path) -> None:
    answer = emma("init", str(tmp_path), "--settle")
    assert answer.code == 2
    assert "init.json: no such file" in answer.err
    begin(tmp_path / "run", raw, "--base", "tiny", "--epochs", "2")
    answer = emma("init", str(tmp_path / "run"), "--settle")
    assert answer.code == 2
    assert "emma pack run" in answer.err
