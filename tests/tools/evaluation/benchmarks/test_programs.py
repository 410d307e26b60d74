"""HumanEval and MultiPL-E: prompts, programs, pass@k, and runs as a user starts them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from emma.base.errors import UserError
from emma.commands.evaluate import group
from emma.recipes.reading import read_yaml
from emma.tools.evaluation.benchmarks import command, definitions
from emma.tools.evaluation.benchmarks.command import Request, prepare
from emma.tools.evaluation.benchmarks.definitions import benchmark_names, get_benchmark, get_source
from emma.tools.evaluation.benchmarks.harness import expand
from emma.tools.evaluation.benchmarks.items import build_items, program_of, stops
from emma.tools.evaluation.benchmarks.programs import pass_at_k, run_programs
from emma.tools.evaluation.benchmarks.records import read_samples, read_unit, unit_file
from emma.tools.evaluation.benchmarks.scores import Response
from emma.tools.evaluation.benchmarks.stores import Mirror
from emma.tools.evaluation.quality.texts import generated_units
from emma.tools.evaluation.results import read_results
from emma.tools.evaluation.sandbox import toolchains
from emma.tools.evaluation.sandbox.toolchains import Executor
from emma.tools.report.samples import _texts
from tests.tools.evaluation.benchmarks.sample_mirror import write_parquet
from tests.tools.evaluation.sandbox.isolation import needs_isolation

# Items in the fields of openai_humaneval, written for this test.
FUNCTIONS = [
    ("double", "    return 2 * x\n", "    assert candidate(2) == 4\n    assert candidate(-1) == -2\n"),
    ("is_odd", "    return x % 2 == 1\n", "    assert candidate(3) is True\n    assert candidate(4) is False\n"),
    ("last", "    return x[-1]\n", "    assert candidate([1, 2]) == 2\n"),
]  # fmt: skip


def human_eval() -> list[dict[str, str]]:
    return [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f'def {name}(x):\n    """The {name} of x."""\n',
            "canonical_solution": solution,
            "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n{test}",
            "entry_point": name,
        }
        for n, (name, solution, test) in enumerate(FUNCTIONS)
    ]


def multipl_e(comment: str, test: str, extension: str) -> list[dict[str, Any]]:
    """Items whose answer is the rest of a comment's line, so that any model's programs pass or fail as `test` does."""
    return [
        {
            "name": f"HumanEval_{n}_one",
            "language": extension,
            "prompt": f"{comment} number {n}\n{comment} ",
            "doctests": "transform",
            "original": f"HumanEval_{n}_one.py",
            "prompt_terminology": "reworded",
            "tests": test.format(n),
            "stop_tokens": ["\n"],
        }
        for n in range(3)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("programs")
    write_parquet(root / "openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet", human_eval())
    for extension, comment, test in (
        # The second of three fails.
        ("sh", "#", "set -e\n[[ {0} != 1 ]]"),
        ("js", "//", "const assert = require('node:assert');\nassert.notEqual({0}, 1);"),
        ("rkt", ";", "#lang racket {0}"),
    ):
        path = root / f"nuprl/MultiPL-E/humaneval-{extension}/test-00000-of-00001.parquet"
        write_parquet(path, multipl_e(comment, test, extension))
    return root


@pytest.fixture(autouse=True)
def no_racket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Racket."""
    find = toolchains._find
    monkeypatch.setattr(toolchains, "_find", lambda need: None if need == "racket" else find(need))


@pytest.fixture(scope="module")
def executor() -> Executor:
    needs_isolation()
    return Executor(lambda name: None)


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(group, ["run", *map(str, arguments)])
    assert result.exit_code == code or (code and isinstance(result.exception, UserError)), result.output
    return result


def test_pass_at_k_is_the_share_of_choices_with_one_that_passes() -> None:
    for samples in range(1, 8):
        for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            choices = list(itertools.combinations(range(samples), k))
            share = sum(any(place < correct for place in choice) for choice in choices) / len(choices)
            assert pass_at_k(samples, correct, k) == pytest.approx(share, abs=1e-12)
    # The paper's numerically stable form, which lm-eval's and evaluate's code_eval compute.
    for samples, correct, k in ((200, 13, 10), (200, 3, 100), (50, 49, 25), (1000, 1, 1)):
        theirs = 1.0 - np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1))
        assert pass_at_k(samples, correct, k) == pytest.approx(theirs, abs=1e-12)
    for wrong in ((5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*wrong)


def test_human_eval_is_lm_evals(data: Path) -> None:
    import jinja2
    import lm_eval.tasks

    path = Path(lm_eval.tasks.__file__).parent / "humaneval" / "humaneval.yaml"
    text = path.read_text().replace("!function ", "")
    (data / "humaneval.yaml").write_text(text)
    theirs = read_yaml(data / "humaneval.yaml").values
    benchmark = get_benchmark("humaneval")
    assert list(benchmark.stop) == list(theirs["generation_kwargs"]["until"])
    assert benchmark.max_new_tokens == theirs["generation_kwargs"]["max_gen_toks"]
    assert (theirs["generation_kwargs"]["do_sample"], benchmark.sampling) == (False, None)
    assert benchmark.data.repository == theirs["dataset_path"]
    for item, row in zip(build_items(benchmark, "eng_Latn", Mirror(data)), human_eval(), strict=True):
        assert item.prompt == jinja2.Template(theirs["doc_to_text"], keep_trailing_newline=True).render(row)
        target = jinja2.Template(theirs["doc_to_target"], keep_trailing_newline=True).render(row)
        # What its code_eval runs is "{prediction}\n{reference}".
        assert (
            program_of(benchmark, "eng_Latn", item, "    return 1")
            == f"{item.prompt}    return 1\n{target}\n"
        )


def test_canonical_solutions_pass_and_broken_ones_do_not(data: Path, executor: Executor) -> None:
    benchmark = get_benchmark("humaneval")
    items = build_items(benchmark, "eng_Latn", Mirror(data))
    assert executor.lack("python") is None
    right = [Response(texts=(item.reference or "",)) for item in items]
    done, scores = run_programs(benchmark, "eng_Latn", items, right, executor)
    assert scores["pass@1"].value == 1.0 and {r.outcomes for r in done} == {("passed",)}
    wrong = [
        # Cut where the next definition begins, so what would replace the test is not run.
        Response(texts=("    return 3 * x\ndef check(c): pass\n",)),
        Response(texts=("    return x % 2 ==",)),
        Response(texts=("    while True: pass",)),
    ]
    (leaving,), _ = run_programs(
        benchmark, "eng_Latn", items[:1], [Response(texts=("    import os; os._exit(0)",))], executor
    )
    assert leaving.outcomes == ("ended before its tests did, or against them: exit code 0",)
    benchmark = benchmark.model_copy(update={"metrics": ("pass@1", "stopped_rate", "empty_rate")})
    short = toolchains.get_toolchain("python").model_copy(
        update={"steps": (toolchains.Command(command=("python3", "-I", "program.py"), seconds=1),)}
    )
    ready = executor._get("python")
    executor._ready["python"] = toolchains._Ready(short, ready.sandbox, ready.version, ready.mark)
    try:
        done, scores = run_programs(benchmark, "eng_Latn", items, wrong, executor)
    finally:
        executor._ready["python"] = ready
    assert scores["pass@1"].items == [0.0, 0.0, 0.0] and scores["stopped_rate"].items == [0.0, 0.0, 1.0]
    assert "AssertionError" in done[0].outcomes[0]
    assert "SyntaxError" in done[1].outcomes[0]
    assert done[2].outcomes == ("stopped: time",)


def test_samples_are_counted_by_item(data: Path, executor: Executor) -> None:
    benchmark = get_benchmark("multipl_e_bash").model_copy(
        update={"samples": 4, "metrics": ("pass@1", "pass@2", "empty_rate")}
    )
    items = build_items(benchmark, "eng_Latn", Mirror(data))
    assert stops(benchmark, "eng_Latn", items[0]) == ("\n",)
    # Right, cut at its end, wrong, and empty (which leaves the prompt's comment, and so passes).
    responses = [Response(texts=("fine", "fine\nexit 1", "x\nexit 2", ""))] * 3
    _, scores = run_programs(benchmark, "eng_Latn", items, responses, executor)
    assert scores["pass@1"].items == [1.0, 0.0, 1.0]
    assert scores["pass@2"].value == pytest.approx(2 / 3)
    assert scores["empty_rate"].value == 0.25
    mixed = benchmark.model_copy(update={"stop_field": None})
    _, scores = run_programs(mixed, "eng_Latn", items, responses, executor)
    assert scores["pass@1"].items[0] == 0.5 and scores["pass@2"].items[0] == pytest.approx(5 / 6)


def test_a_run_of_every_kind(reader: Path, data: Path, tmp_path: Path) -> None:
    needs_isolation()
    output = tmp_path / "evaluation"
    arguments: list[str | Path] = [reader, "--mirror", data, "--output", output, "--device", "cpu", "--json"]
    names = "multipl_e_bash,multipl_e_racket,humaneval,nll_humaneval"
    arguments += ["--tier", "smoke", "--benchmarks", names, "--limit", "2"]
    result = run(*arguments)
    assert "left out: multipl_e_racket: toolchain racket: no racket on the path" in result.stderr
    rows = {(row.benchmark, row.metric): row for row in read_results(output)}
    assert {row.language for row in read_results(output)} == {"eng_Latn"}
    found = rows["multipl_e_bash", "pass@1"]
    assert (found.n, found.value) == (2, 0.5) and found.error is not None
    assert rows["multipl_e_bash", "pass@25"].value == 0.5
    assert "decoding:t0.2,p0.95,seed42|max_new:16|samples:50|toolchain:GNU bash, version" in found.signature
    assert rows["humaneval", "pass@1"].value == 0.0
    assert "decoding:greedy" in rows["humaneval", "pass@1"].signature
    assert 0 < rows["nll_humaneval", "bits_per_byte"].value < 50
    unit = unit_file(output, "reader", "multipl_e_bash", "eng_Latn")
    samples = list(read_samples(unit))
    assert all(len(sample["texts"]) == len(sample["outcomes"]) == 50 for sample in samples)
    assert len({tuple(sample["texts"]) for sample in samples}) == 2
    assert len(set(samples[0]["texts"])) > 1, "every sample is the same"
    assert [sample["scores"]["pass@1"] for sample in samples] == [1.0, 0.0]
    shown = [_texts(sample) for sample in samples]
    assert [text["answer"].rpartition("\n")[2] for text in shown if text] == ["(passed)", "(exit code 1)"]
    # Programs are in no natural language, so nothing identifies one.
    assert list(generated_units(output, "reader")) == []
    done = read_unit(unit)
    assert done is not None and done.details["settings"]["program"]["limits"]["memory_mib"] == 2048
    # Nothing is run twice, and another version of the toolchain is another result.
    before = unit.stat().st_mtime_ns
    run(*arguments)
    assert unit.stat().st_mtime_ns == before


def test_a_toolchain_that_is_missing_or_no_isolation_refuses_before_the_model_is_loaded(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_isolation()
    request = Request(benchmarks=("multipl_e_racket", "multipl_e_bash"), mirror=data)
    with pytest.raises(
        UserError, match=r"multipl_e_racket: toolchain racket: no racket on the path\ninstall"
    ):
        prepare(request)
    left = prepare(Request(benchmarks=("multipl_e_racket", "multipl_e_bash"), mirror=data, skip_missing=True))
    assert [unit.benchmark.name for unit in left.plan.units] == ["multipl_e_bash"]

    def refuse(*arguments: object) -> None:
        raise UserError("programs cannot be isolated on this machine")

    monkeypatch.setattr(toolchains, "prove", refuse)
    with pytest.raises(UserError, match="cannot be isolated"):
        prepare(request)
    mixed = Request(benchmarks=("humaneval", "nll_humaneval"), mirror=data, skip_missing=True)
    left = prepare(mixed)
    assert [unit.benchmark.name for unit in left.plan.units] == ["nll_humaneval"]
    assert left.resources.executor is None
    assert command.notes(left) == ["left out: humaneval: programs cannot be isolated on this machine"]
    with pytest.raises(UserError, match="nothing to run: humaneval: programs cannot"):
        prepare(Request(benchmarks=("humaneval",), mirror=data, skip_missing=True))


def test_data_that_is_wrong_is_refused(data: Path, executor: Executor, tmp_path: Path) -> None:
    benchmark = get_benchmark("multipl_e_bash")
    rows = multipl_e("#", "{0}", "sh")
    rows[1]["stop_tokens"] = "\n"  # type: ignore[assignment]
    (item, *_) = items = build_items(benchmark, "eng_Latn", Mirror(data))
    broken = [type(item)(**{**vars(i), "row": row}) for i, row in zip(items, rows, strict=True)]
    with pytest.raises(
        UserError, match=r"multipl_e_bash/eng_Latn, item 1: stop_tokens is '\\n', not a list of"
    ):
        run_programs(benchmark, "eng_Latn", broken, [Response(texts=("",) * 50)] * 3, executor)
    del rows[0]["tests"]
    broken = [type(item)(**{**vars(i), "row": row}) for i, row in zip(items, rows, strict=True)]
    with pytest.raises(UserError, match=r"item 0: 'tests' is undefined"):
        run_programs(benchmark, "eng_Latn", broken, [Response(texts=("",) * 50)] * 3, executor)


def test_the_tables_belong_together() -> None:
    names = expand(["multipl_e"])
    assert len(names) == 18 and set(names) <= set(benchmark_names(on_demand=True)) - set(benchmark_names())
    measures = read_yaml(Path(definitions.__file__).parents[3] / "recipes/evaluation/measures.yaml").values
    for name in [*names, "humaneval"]:
        benchmark = get_benchmark(name)
        assert benchmark.program is not None and benchmark.languages == ("eng_Latn",)
        assert measures["benchmarks"][name]["metric"] == "pass@1"
        assert set(benchmark.metrics) <= set(measures["metrics"])
        if name != "humaneval":
            assert name == f"multipl_e_{benchmark.program.toolchain}"
            assert get_source(name).codes["eng_Latn"].startswith("humaneval-")
    assert {"humaneval", "nll_humaneval"} <= set(expand(["retention"]))
    values = {**definitions._values("humaneval"), "name": "one"}
    for changes, message in (
        ({"samples": 5}, "several samples need sampling and a program"),
        ({"metrics": ["pass@10"]}, "pass@10 needs as many samples, and there are 1"),
    ):
        with pytest.raises(ValueError, match=message):
            definitions.Benchmark.model_validate({**values, **changes})


def test_other_benchmarks_keys_are_as_before() -> None:
    """Finished languages are not run again because programs came."""
    decisive = get_benchmark("flores200_eng_x").decisive()
    assert not {"samples", "program", "stop_field"} & set(decisive) and "cluster" in decisive
    assert "cluster" not in get_benchmark("sib200").decisive()
    assert get_benchmark("humaneval").decisive()["program"]["toolchain"] == "python"
    assert json.dumps(decisive)
