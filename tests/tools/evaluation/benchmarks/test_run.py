"""`emma evaluate run` with benchmarks, as a user runs it, on a tiny model and a mirror."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from emma.base.errors import UserError
from emma.commands.evaluate import group
from emma.tools.evaluation.benchmarks import records
from emma.tools.evaluation.benchmarks.definitions import benchmark_names
from emma.tools.evaluation.benchmarks.records import read_samples
from emma.tools.evaluation.results import read_results
from emma.tools.evaluation.stored import evaluated_models
from tests.tools.evaluation.benchmarks.sample_mirror import SENTENCES
from tests.tools.evaluation.tiny_model import write_corpus

FEW = "belebele,sib200,sib200_emma,flores200_eng_x,flores200_x_eng_emma,mgsm_cot,nll_pbc,xlsum,xnli"


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(group, ["run", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def arguments(reader: Path, mirror: Path, spm: Path, tmp_path: Path) -> list[str | Path]:
    return [
        *(reader, "--mirror", mirror, "--output", tmp_path / "evaluation", "--device", "cpu"),
        *("--spbleu-model", spm, "--spbleu-other", "--json"),
    ]


def table(output: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    rows = csv.DictReader((output / "results.csv").open(encoding="utf-8"))
    return {(row["benchmark"], row["language"], row["metric"]): row for row in rows}


def unit_times(output: Path) -> dict[str, int]:
    paths = (output / "benchmarks").rglob("*.json")
    return {f"{path.parent.name}/{path.stem}": path.stat().st_mtime_ns for path in paths}


def test_runs_every_kind_and_repeats_nothing(arguments: list[str | Path], tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    arguments += ["--tier", "smoke", "--benchmarks", FEW, "--limit", "3"]
    noted = run(*arguments).stderr
    assert "it is not spBLEU" in noted
    rows = table(output)
    assert len({(benchmark, language) for benchmark, language, _ in rows}) == 9 * 3
    assert rows["belebele_emma", "swh_Latn", "acc"]["n"] == "3"
    assert float(rows["belebele_emma", "swh_Latn", "chance"]["value"]) == 0.25
    assert rows["mgsm_cot_emma", "sw", "exact_match_strict"]["error"] == "0.0"
    spbleu = rows["flores200_eng_x", "eng_Latn-hin_Deva", "spbleu"]["signature"]
    assert "decoding:greedy|max_new:16|window:1024|backend:hf|dtype:float32|prompts:" in spbleu
    assert "tok:spm-" in spbleu
    sampled = rows["flores200_x_eng_emma", "hin_Deva-eng_Latn", "chrf++"]["signature"]
    assert "decoding:t0.6,p0.9,seed42" in sampled

    unit = output / "benchmarks" / "reader" / "flores200_eng_x" / "eng_Latn-hin_Deva.json"
    samples = list(read_samples(unit))
    assert [sample["reference"] for sample in samples] == [
        f"{SENTENCES['hin_Deva']} ({n}) devtest" for n in range(3)
    ]
    assert [sample["source"] for sample in samples] == [
        f"{SENTENCES['eng_Latn']} ({n}) devtest" for n in range(3)
    ]
    assert all(isinstance(sample["output"], str) for sample in samples)
    assert all(len(sample["scores"]["chrf++"]) == 24 for sample in samples)
    details = json.loads(unit.read_text())["details"]
    assert {"lm-eval", "torch", "transformers", "sacrebleu"} <= set(details["versions"])
    assert len(details["settings"]["spbleu_sha256"]) == 64

    before = unit_times(output)
    results = (output / "results.csv").read_bytes()
    run(*arguments)
    assert unit_times(output) == before
    assert (output / "results.csv").read_bytes() == results
    # Another limit is another score; the other benchmarks' files stay.
    run(*arguments[:-2], "--limit", "2", "--benchmarks", "belebele")
    assert table(output)["belebele_emma", "swh_Latn", "acc"]["n"] == "2"
    changed = {name for name, time in unit_times(output).items() if before[name] != time}
    assert {name.split("/")[0] for name in changed} == {"belebele_emma"}
    assert [(model.name, model.role) for model in evaluated_models(output)] == [("reader", "trained")]


def test_killed_run_continues(
    arguments: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "evaluation"
    arguments += ["--tier", "smoke", "--benchmarks", "nll_pbc,nll_glot500"]
    original = records.write_json

    def write_two_and_die(path: Path, value: object) -> None:
        original(path, value)
        if len(unit_times(output)) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=run, args=arguments)
    with monkeypatch.context() as patch:
        patch.setattr(records, "write_json", write_two_and_die)
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    first = unit_times(output)
    assert len(first) == 2
    assert not (output / "results.csv").exists()
    run(*arguments)
    after = unit_times(output)
    assert len(after) == 6
    assert {name: after[name] for name in first} == first


def test_likelihood_is_that_of_transformers(
    reader: Path, arguments: list[str | Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(
        *arguments,
        "--benchmarks",
        "nll_pbc",
        "--languages",
        "swh_Latn,hin_Deva,eng_Latn",
        "--max-length",
        "64",
    )
    model = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(reader)
    rows = table(tmp_path / "evaluation")
    for code in ("swh_Latn", "hin_Deva", "eng_Latn"):
        total = size = 0.0
        unit = tmp_path / "evaluation" / "benchmarks" / "reader" / "nll_pbc" / f"{code}.json"
        for sample in read_samples(unit):
            text = sample["prompt"]
            # The tokenizer itself puts one begin-of-text token before the text.
            ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
            assert ids[0] == tokenizer.bos_token_id != ids[1]
            scored, expected = 1, 0.0
            while scored < len(ids):
                # Windows of 64 tokens, 32 apart; each scores what no earlier one has.
                begin = 0 if scored == 1 else begin + 32  # noqa: F821
                end = min(begin + 64, len(ids) - 1)
                with torch.inference_mode():
                    logits = model(ids[None, begin:end]).logits[0].double()
                gold = ids[scored : end + 1]
                picked = logits.log_softmax(-1)[scored - 1 - begin :].gather(1, gold[:, None])
                expected -= float(picked.sum())
                scored = end + 1
            bytes_ = len(text.encode())
            assert abs(sample["nll"] - expected) / bytes_ < 1e-6
            assert (sample["tokens"], sample["bytes"]) == (len(ids) - 1, bytes_)
            total, size = total + expected, size + bytes_
        bits = float(rows["nll_pbc", code, "bits_per_byte"]["value"])
        assert bits == pytest.approx(total / size / 0.6931471805599453, abs=1e-6)


def test_last_token_scoring_is_the_authors(reader: Path, arguments: list[str | Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(*arguments, "--benchmarks", "sib200_emma", "--languages", "swh_Latn")
    model = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(reader)
    right = []
    unit = tmp_path / "evaluation" / "benchmarks" / "reader" / "sib200_emma" / "swh_Latn.json"
    for sample in read_samples(unit):
        with torch.inference_mode():
            logits = model(**tokenizer(sample["prompt"], return_tensors="pt")).logits[0, -1]
        tokens = [tokenizer(f" {label}").input_ids[-1] for label in sample["choices"]]
        expected = logits.log_softmax(-1)[tokens].tolist()
        assert sample["likelihoods"] == pytest.approx(expected, abs=1e-4)
        options = sorted(zip(logits[tokens].tolist(), sample["choices"], strict=True), reverse=True)
        right.append(float(options[0][1] == sample["choices"][sample["gold"]]))
    assert float(table(tmp_path / "evaluation")["sib200_emma", "swh_Latn", "acc"]["value"]) == sum(
        right
    ) / len(right)


def test_shards_are_joined(arguments: list[str | Path], tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    arguments += ["--tier", "smoke", "--benchmarks", "nll_pbc,xnli"]
    for shard in ("0/2", "1/2"):
        run(*arguments[:-4], "--tier", "smoke", "--benchmarks", "nll_pbc,xnli", "--shard", shard)
        assert not (output / "results.csv").exists()
    before = unit_times(output)
    assert len(before) == 6
    run(*arguments)
    assert unit_times(output) == before
    assert len({key[:2] for key in table(output)}) == 6


def test_base_is_run_too(base: Path, arguments: list[str | Path], tmp_path: Path) -> None:
    run(
        *arguments, "--benchmarks", "nll_pbc", "--languages", "eng_Latn", "--base", base, "--max-length", "64"
    )
    rows = read_results(tmp_path / "evaluation")
    assert {(row.model, row.benchmark) for row in rows} == {("reader", "nll_pbc"), ("base", "nll_pbc")}
    signatures = {row.signature for row in rows if row.metric == "bits_per_byte"}
    assert len(signatures) == 1


def test_heldout_text_among_benchmarks(arguments: list[str | Path], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ("eng_Latn",))
    run(*arguments, "--benchmarks", "nll_pbc,heldout", "--languages", "eng_Latn", "--text", corpus)
    assert {key[0] for key in table(tmp_path / "evaluation")} == {"nll_pbc", "heldout/monolingual"}


def test_long_documents_lose_their_end_not_the_instruction(
    arguments: list[str | Path], tmp_path: Path
) -> None:
    run(
        *arguments,
        "--benchmarks",
        "massivesumm_long",
        "--languages",
        "hin_Deva",
        "--limit",
        "1",
        "--max-length",
        "512",
    )
    unit = tmp_path / "evaluation" / "benchmarks" / "reader" / "massivesumm_long" / "hin_Deva.json"
    (sample,) = read_samples(unit)
    assert sample["prompt"].startswith(f"Document\n\n{SENTENCES['hin_Deva']}")
    assert sample["prompt"].endswith("\n\nBased on the previous text, provide a brief single summary:")
    details = json.loads(unit.read_text())["details"]
    assert (details["shortened"], details["prompts_cut"]) == (1, 0)


def test_dry_run_counts(arguments: list[str | Path], tmp_path: Path) -> None:
    costs = json.loads(
        run(*arguments, "--benchmarks", "belebele,sib200_emma", "--tier", "smoke", "--dry-run").stdout
    )
    assert [(row["benchmark"], row["languages"], row["items"], row["requests"]) for row in costs] == [
        ("belebele_emma", 3, 12, 48),
        ("sib200_emma", 3, 12, 12),
    ]
    assert all(row["prompt_tokens"] > 0 for row in costs)
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--benchmarks", "sib"], "no benchmark sib"),
        (["--benchmarks", "sib200", "--languages", "xxx_Xxxx"], "no language xxx_Xxxx"),
        (["--benchmarks", "sib200", "--tier", "full"], "data is missing"),
        (
            ["--benchmarks", "belebele", "--tier", "smoke", "--shots", "belebele=2"],
            "no template for examples",
        ),
        (["--benchmarks", "sib200", "--tier", "smoke", "--shots", "sib200"], "must be BENCHMARK=N"),
        (
            ["--benchmarks", "sib200", "--tier", "smoke", "--shots", "sib200=13"],
            "13 shots need 13 examples, but there are 12",
        ),
        (
            ["--benchmarks", "nll_pbc", "--tier", "smoke", "--shots", "lm_eval:gsm8k=2"],
            "--shots lm_eval.gsm8k: not among the benchmarks of this run",
        ),
        (["--benchmarks", "nll_pbc", "--tier", "smoke", "--max-length", "4096"], "takes at most 1024 tokens"),
        (["--benchmarks", "nll_pbc", "--tier", "smoke", "--backend", "vllm"], "vllm is not installed"),
    ],
)
def test_mistakes(arguments: list[str | Path], more: list[str], part: str) -> None:
    with pytest.raises(UserError, match=part):
        CliRunner().invoke(group, ["run", *map(str, arguments), *more], catch_exceptions=False)


@pytest.mark.slow
def test_smoke_tier_runs_all_benchmarks_offline(
    arguments: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(*arguments, "--tier", "smoke")
    units = {key[:2] for key in table(tmp_path / "evaluation")}
    assert {name for name, _ in units} == set(benchmark_names())
    assert len(units) == 3 * len(benchmark_names())
