"""A run folder as the stages write it, with made-up numbers: each file through its stage's own writer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from emma.base.files import read_json, write_json
from emma.recipes.load import load_recipe, write_recipe
from emma.recipes.schema import Recipe
from emma.tools.evaluation.gains import compare
from emma.tools.evaluation.groups import LanguageFacts
from emma.tools.evaluation.journal import LanguageScores
from emma.tools.evaluation.likelihood import DocumentScore
from emma.tools.evaluation.results import Result, heldout_results, read_results, write_results
from emma.tools.evaluation.stored import journal_of
from emma.tools.mix.plan import MixPlan, PlannedSource
from emma.tools.mix.sources import Source
from emma.tools.runs.environment import environment
from emma.tools.runs.metrics import append_metrics

CATEGORIES = {"high": 20_000, "medium": 4_000, "low": 0}
SIGNATURE = "nll:1|prefix:<|begin_of_text|>|end_of_text:0|window:512|stride:256|dtype:float32"

_RECIPE = """
description: The road in small, on {words}
model:
  base: tiny
  tokenizer: {{path: {tokenizer}, begin_of_text: <|begin_of_text|>, end_of_text: <|end_of_text|>}}
data:
  name: {name}
  pack:
    components: {{monolingual: {{kind: text}}, bilingual: {{kind: bilingual}}, code: {{kind: code}}, books: {{kind: text}}}}
  mix:
    components:
      monolingual:
        share: 60
        categories: {{low: {{at_least: 0, factor: 3}}, high: {{at_least: 20000}}, medium: {{at_least: 4000, factor: 2}}}}
      {bilingual}
      code: {{share: 10}}
      books: {{share: 5}}
layout: local_cpu
batch: {{global: 8, sequence_length: 256}}
schedule: {{steps: {steps}, learning_rate: 1.0e-3, min_learning_rate: 1.0e-4, warmup_steps: {warmup}}}
start: {{mode: weights, checkpoint: base/megatron}}
paths: {{corpus: {root}/corpus, store: {root}/store, mix: {root}/mix, runs: {root}/runs}}
"""


def sample_recipe(root: Path, name: str = "sample", steps: int = 120, *, bilingual: bool = True) -> Recipe:
    """Recipe of a small run; its file is `root/<name>.yaml`."""
    text = _RECIPE.format(
        words="all kinds of text" if bilingual else "everything but translations",
        tokenizer=root / "tokenizer",
        name=name,
        bilingual="bilingual: {share: 25}" if bilingual else "",
        steps=steps,
        warmup=max(1, steps // 10),
        root=root,
    )
    path = root / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line for line in text.splitlines() if line.strip()) + "\n", encoding="utf-8")
    return load_recipe(path)


def codes(count: int) -> list[str]:
    """Codes of real languages, English first, then made-up ones of the same form."""
    real = [
        "eng_Latn",
        "deu_Latn",
        "rus_Cyrl",
        "cmn_Hans",
        "hin_Deva",
        "swh_Latn",
        "yor_Latn",
        "kat_Geor",
        "amh_Ethi",
    ]
    made = [f"q{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}_Latn" for i in range(max(0, count - len(real)))]
    return [*real, *made][:count]


def write_start(recipe: Recipe) -> Path:
    """Run folder with recipe and environment, before the first step."""
    run = recipe.run_folder
    run.mkdir(parents=True)
    write_recipe(recipe, run / "recipe.yaml")
    launch = {
        "number": 1,
        "started": "2026-01-05T10:00:00+00:00",
        "host": "node-1",
        "load": {"mode": "weights", "folder": "base", "step": None},
    }
    resumed = {
        "number": 2,
        "started": "2026-01-05T10:09:00+00:00",
        "host": "node-1",
        "load": {"mode": "resume", "folder": str(run), "step": 60},
    }
    write_json(run / "environment.json", {**environment(recipe), "launches": [launch, resumed]})
    return run


def write_metrics(recipe: Recipe, seed: int = 0) -> None:
    """metrics.jsonl: every step, and a validation of all groups after every tenth of the run."""
    generator = np.random.default_rng(seed)
    file, steps = recipe.run_folder / "metrics.jsonl", recipe.schedule.steps
    groups = ["component-" + name for name in recipe.data.mix.components]
    groups += [f"category-monolingual-{name}" for name in CATEGORIES] + ["language-eng_Latn"]
    for step in range(steps + 1):
        share = step / steps
        loss = 4.2 + 2.6 * math.exp(-6 * share) + generator.normal(0, 0.05)
        if step:
            append_metrics(
                file,
                {
                    "step": step,
                    "consumed_samples": step * recipe.batch.global_,
                    "consumed_tokens": step * recipe.tokens_per_step,
                    "loss": loss,
                    "grad_norm": 1 + 3 * math.exp(-20 * share) + abs(generator.normal(0, 0.1)),
                    "learning_rate": 1e-3 * min(1.0, share * 10) * (0.55 + 0.45 * math.cos(math.pi * share)),
                    "tokens_per_second_per_gpu": 3100 + generator.normal(0, 60),
                    "tflops_per_gpu_causal": 0.034,
                    "mfu": None,
                    "memory_gib": 0.0,
                    "data_wait_ms": 0.0,
                    "skipped": 0,
                },
            )
        if step % max(1, steps // 10) == 0:
            losses = {g: loss + 0.15 * i + generator.normal(0, 0.02) for i, g in enumerate(groups)}
            append_metrics(file, {"step": step, "validation": losses})


def write_plan(recipe: Recipe, languages: list[str]) -> None:
    """mix/<name>/plan.parquet and mix.json."""
    generator = np.random.default_rng(1)
    sources = []
    for place, language in enumerate(languages):
        words = int(60_000 / (1 + place) ** 0.9)
        category = next(name for name, least in CATEGORIES.items() if words >= least)
        sources.append(("monolingual", language, category, words, 0.6 / len(languages)))
    if "bilingual" in recipe.data.mix.components:
        sources += [("bilingual", f"eng_Latn-{code}", None, 900, 0.25 / 8) for code in languages[1:9]]
    sources += [("code", "python", None, 3000, 0.1), ("books", "eng_Latn", None, 9000, 0.05)]
    total = recipe.total_tokens
    planned = [
        PlannedSource(
            Source(
                component, language, category, words, words // 100 + 1, int(words * generator.uniform(1.5, 4))
            ),
            round(total * share),
            total,
        )
        for component, language, category, words, share in sources
    ]
    plan = MixPlan(total, recipe.batch.sequence_length, planned, recipe.data.mix.shares)
    recipe.mix_folder.mkdir(parents=True)
    pq.write_table(plan.table(), recipe.mix_folder / "plan.parquet")
    write_json(
        recipe.mix_folder / "mix.json",
        {"fingerprint": "f" * 64, "seed": 1234, "samples": recipe.total_samples},
    )


def _scores(languages: list[str], level: float, seed: int) -> dict[tuple[str, str], LanguageScores]:
    scores = {}
    kinds = [("monolingual", language) for language in languages]
    kinds += [("parallel", f"eng_Latn-{language}") for language in languages[1:9]]
    kinds += [("code", "python"), ("code", "go"), ("books", "eng_Latn")]
    for place, (kind, language) in enumerate(kinds):
        generator = np.random.default_rng([seed, place])
        own = np.random.default_rng([99, place]).uniform(0, 1.4)
        won = 0.05 if language == "eng_Latn" else -level * (0.4 + own) * generator.uniform(0.6, 1.2)
        bits = 1.9 + own + (won if level else 0.0)
        documents = []
        for number in range(4):
            size = 300 + 40 * number
            documents.append(
                DocumentScore(
                    str(number), size, size // 3, (bits + generator.normal(0, 0.02)) * size * math.log(2)
                )
            )
        scores[kind, language] = LanguageScores(
            kind, language, SIGNATURE, f"{seed}" * 64, "text", tuple(documents)
        )
    return scores


def write_evaluation(
    recipe: Recipe,
    languages: list[str],
    level: float = 0.5,
    seed: int = 2,
    facts: LanguageFacts | None = None,
) -> None:
    """evaluation/ of the last step against the base, from made-up document scores; unless facts are given, pairs are not
    in the mix."""
    folder, name = recipe.run_folder / "evaluation", f"{recipe.name}/step-{recipe.schedule.steps}"
    base, trained = _scores(languages, 0.0, 1), _scores(languages, level, seed)
    for model, scores in (("base", base), (name, trained)):
        for row in scores.values():
            journal_of(folder, model).append(row)
    rows = heldout_results("base", base.values()) + heldout_results(name, trained.values())
    write_results(folder, rows)
    write_json(
        folder / "models.json",
        {
            "base": {"role": "base", "folder": "../base", "step": None, "sha256": "1" * 64},
            name: {
                "role": "trained",
                "folder": f"../hf/step-{recipe.schedule.steps}",
                "step": recipe.schedule.steps,
                "sha256": f"{seed}" * 64,
            },
        },
    )
    plan = {
        row["language"]: row
        for row in pq.read_table(recipe.mix_folder / "plan.parquet").to_pylist()
        if row["component"] == "monolingual"
    }
    facts = facts or LanguageFacts(
        {("monolingual", language): row["category"] for language, row in plan.items()},
        tuple(CATEGORIES),
        frozenset(("monolingual", language) for language in plan),
        frozenset(languages[:6]),
    )
    write_json(folder / "gains.json", compare("base", name, base, trained, facts).to_dict())


BENCHMARK_LANGUAGES = (
    *(
        "eng_Latn",
        "deu_Latn",
        "rus_Cyrl",
        "zho_Hans",
        "hin_Deva",
        "swh_Latn",
        "yor_Latn",
        "kat_Geor",
        "amh_Ethi",
    ),
    *(
        "fra_Latn",
        "spa_Latn",
        "jpn_Jpan",
        "tha_Thai",
        "khk_Cyrl",
        "uzn_Latn",
        "quy_Latn",
        "lua_Latn",
        "kab_Latn",
    ),
    *(
        "bod_Tibt",
        "eus_Latn",
        "hat_Latn",
        "ibo_Latn",
        "zul_Latn",
        "pes_Arab",
        "tat_Cyrl",
        "wol_Latn",
        "nus_Latn",
    ),
)


def benchmark_rows(model: str, level: float, seed: int) -> list[Result]:
    """Made-up scores of a model on three benchmarks; `level` raises every language except English."""
    rows = []
    for place, language in enumerate(BENCHMARK_LANGUAGES):
        own = np.random.default_rng([7, place]).uniform(-0.12, 0.12)
        luck = np.random.default_rng([seed, place]).normal(0, 0.03)
        lift = -0.06 * (level > 0) if language == "eng_Latn" else level * (0.5 - own)
        right = min(0.95, max(0.05, 0.38 + own + luck + lift))
        error = (right * (1 - right) / 204) ** 0.5
        rows += [
            Result(model, "sib200", language, "acc", 204, right, error, "made up"),
            Result(model, "sib200", language, "macro_f1", 204, right * 0.93, error, "made up"),
            Result(model, "sib200", language, "label_collapse", 204, 0.3, None, "made up"),
            Result(model, "sib200", language, "chance", 204, 1 / 7, None, "made up"),
            Result(model, "sib200", language, "majority", 204, 0.25, None, "made up"),
        ]
        if language != "eng_Latn":
            value, pair = 20 + 60 * (own + lift + luck), f"eng_Latn-{language}"
            rows += [
                Result(model, "flores200_eng_x", pair, "chrf++", 1012, max(value, 1.0), 0.5, "made up"),
                Result(model, "flores200_eng_x", pair, "spbleu", 1012, max(value / 2, 0.5), 0.3, "made up"),
                Result(model, "flores200_eng_x", pair, "empty_rate", 1012, 0.02, None, "made up"),
            ]
        if place < 3:
            rows.append(Result(model, "xnli_emma", language[:2], "acc", 2490, right, 0.01, "made up"))
    return rows


def write_benchmarks(
    recipe: Recipe,
    level: float = 0.3,
    seed: int = 2,
    benchmarks: tuple[str, ...] = ("sib200", "flores200_eng_x", "xnli_emma"),
) -> None:
    """Adds benchmarks of the base, an earlier checkpoint, and the last one to the evaluation's results."""
    folder, last = recipe.run_folder / "evaluation", recipe.schedule.steps
    rows = read_results(folder) + benchmark_rows("base", 0.0, 1)
    known = read_json(folder / "models.json")
    for step, share in ((last // 2, 0.7), (last, 1.0)):
        name = f"{recipe.name}/step-{step}"
        rows += benchmark_rows(name, level * share, seed)
        known[name] = {
            "role": "trained",
            "folder": f"../hf/step-{step}",
            "step": step,
            "sha256": f"{seed}" * 64,
        }
    write_results(folder, [row for row in rows if row.benchmark.split("/")[0] in ("heldout", *benchmarks)])
    write_json(folder / "models.json", known)


def write_parity(recipe: Recipe, languages: list[str], *, passed: bool = True) -> None:
    """hf/step-N/ with config and parity report; no weights."""
    from emma.checkpoints_conversion.parity.report import LanguageResult, LogitsResult, Report
    from emma.checkpoints_conversion.parity.tensors import TensorResult

    export = recipe.run_folder / "hf" / f"step-{recipe.schedule.steps}"
    export.mkdir(parents=True)
    write_json(export / "config.json", {"model_type": "llama"})
    delta = 4e-6 if passed else 0.3
    results = [LanguageResult(language, 60, delta, 1e-11, 2e-10, 1.0) for language in languages[:5]]
    logits = LogitsResult(
        1e-4, "tokenizer", "Megatron 0.19.2", "transformers 5.23.0", "cpu", results, [0.0, 1e-6, 2e-6]
    )
    tensors = [
        TensorResult(f"w{number}", True, "a" * 64, "a" * 64, "float32", 0.0, 0) for number in range(39)
    ]
    report = Report(
        "checkpoint", "export", [], tensors, logits, "2026-01-05T10:20:00+00:00", "2026-01-05T10:20:09+00:00"
    )
    report.write(export)


def write_run(
    root: Path,
    name: str = "sample",
    *,
    languages: int = 40,
    steps: int = 120,
    bilingual: bool = True,
    level: float = 0.5,
    seed: int = 2,
) -> Recipe:
    """A finished run with everything that a report shows."""
    recipe = sample_recipe(root, name, steps, bilingual=bilingual)
    write_start(recipe)
    write_metrics(recipe, seed)
    write_plan(recipe, codes(languages))
    write_evaluation(recipe, codes(languages), level, seed)
    write_parity(recipe, codes(languages))
    return recipe
