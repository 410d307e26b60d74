"""Variants and lists of benchmarks by name, in runs and in mirrors."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from emma.commands.evaluate import group
from emma.tools.evaluation.benchmarks.command import Request, prepare
from emma.tools.evaluation.benchmarks.definitions import benchmark_names, get_tier, variants
from emma.tools.evaluation.benchmarks.mirror import check_mirror, fetch_sources
from tests.tools.evaluation.benchmarks.harness_mirror import write_harness_mirror
from tests.tools.evaluation.tiny_model import write_corpus


def _names(mirror: Path, spm: Path, *benchmarks: str, tier: str | None = None) -> set[str]:
    request = Request(tier, benchmarks, mirror=mirror, skip_missing=True, spbleu_path=spm, spbleu_other=True)
    return {unit.benchmark_name for unit in prepare(request).plan.units}


def test_every_benchmark_has_one_variant_in_each_list() -> None:
    authors, robust = variants()["authors"], variants()["robust"]
    assert set(authors) | set(robust) == set(benchmark_names())
    plain = [[name.removesuffix("_emma") for name in names] for names in (authors, robust)]
    assert sorted(plain[0]) == sorted(plain[1]) == sorted(set(plain[0]))
    assert {"sib200_emma", "belebele_emma", "nll_pbc"} <= set(authors) and "sib200" not in authors
    assert {"sib200", "belebele_emma", "nll_pbc"} <= set(robust) and "sib200_emma" not in robust


def test_full_runs_one_variant_unless_told_otherwise(mirror: Path, spm: Path) -> None:
    assert _names(mirror, spm, tier="full") == set(variants()["robust"])
    assert _names(mirror, spm, "authors", tier="full") == set(variants()["authors"])
    assert _names(mirror, spm, "authors", "robust", tier="core") == set(benchmark_names())
    assert _names(mirror, spm, "heldout", tier="core") == set(variants()["robust"])
    assert get_tier("smoke").benchmarks == ("authors", "robust")
    assert _names(mirror, spm, "sib200_emma") == {"sib200_emma"}


def test_held_out_text_alone_runs_no_benchmark(reader: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ("eng_Latn", "yor_Latn"), 2)
    output = tmp_path / "evaluation"
    arguments = [
        *("run", str(reader), "--benchmarks", "heldout", "--text", str(corpus)),
        "--output",
        str(output),
    ]
    result = CliRunner().invoke(group, [*arguments, "--device", "cpu"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (output / "heldout").is_dir() and not (output / "benchmarks").exists()


def test_mirrors_of_lm_eval_s_tasks_are_checked(tmp_path: Path) -> None:
    mirror = write_harness_mirror(tmp_path / "hub")
    names = ["lm_eval:gsm8k", "lm_eval:hellaswag", "lm_eval:multiblimp_ab?", "lm_eval:multiblimp_arb"]
    report = check_mirror(mirror, names, None)
    assert report.languages == {"lm_eval:gsm8k": 1, "lm_eval:hellaswag": 1, "lm_eval:multiblimp": 1}
    assert report.missing == {"lm_eval:multiblimp": ["arb"]}
    (fault,) = report.faults
    assert "jumelet/multiblimp, arb: no file of it in" in fault
    fetched = fetch_sources(tmp_path / "new", ["lm_eval:gsm8k"], None, dry_run=True)
    assert fetched.by_hand[0].startswith("lm_eval:gsm8k: put the repositories") and not fetched.failed


@pytest.mark.parametrize("command", ["check", "fetch"])
def test_lists_are_names_of_benchmarks_everywhere(command: str, tmp_path: Path) -> None:
    arguments = [command, str(tmp_path), "--benchmarks", "authors,nonsense"]
    result = CliRunner().invoke(group, arguments)
    assert "no benchmark nonsense" in str(result.exception or result.output)
