"""Runs units, from items and model to scores and files; a finished unit is never run again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.base.manifest import now, package_versions
from emma.base.progress import progress
from emma.tools.evaluation.benchmarks.backends import ModelSettings, load_backend, shorten
from emma.tools.evaluation.benchmarks.definitions import Benchmark
from emma.tools.evaluation.benchmarks.harness import (
    HarnessUnit,
    build_tasks,
    evaluate_tasks,
    request_sha256,
)
from emma.tools.evaluation.benchmarks.items import Item, build_items, render
from emma.tools.evaluation.benchmarks.metrics import Resources
from emma.tools.evaluation.benchmarks.programs import facts_of_programs
from emma.tools.evaluation.benchmarks.records import Finished, read_unit, unit_file, write_unit
from emma.tools.evaluation.benchmarks.scores import Response, Score
from emma.tools.evaluation.benchmarks.stores import Store
from emma.tools.evaluation.benchmarks.units import Unit
from emma.tools.evaluation.targets import Target, fingerprint

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["RunSettings", "Runner", "quiet"]

_PACKAGES = (
    "emma-recipes",
    "lm-eval",
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "sacrebleu",
    "rouge-score",
    "sentencepiece",
    "nltk",
)


@dataclass(frozen=True)
class RunSettings:
    """What determines scores besides model, data and benchmark.

    `limit` is the maximum number of items per language, `max_new_tokens` that of tokens per answer (None: the
    benchmark's); `shots` gives the number of worked examples by benchmark, where it is not the benchmark's.
    """

    limit: int | None = None
    max_new_tokens: int | None = None
    shots: Mapping[str, int] | None = None

    def shots_of(self, benchmark: Benchmark) -> int:
        """Number of worked examples of a benchmark."""
        return (self.shots or {}).get(benchmark.name, benchmark.shots)


class Runner:
    """Runs units of one model.

    Args:
        target: the model.
        store: where the data is.
        output: evaluation folder.
        model_settings: backend and its settings.
        settings: limits.
        resources: models that metrics need.

    Raises:
        UserError: the model's config names no context length.
    """

    def __init__(
        self,
        target: Target,
        store: Store,
        output: Path,
        model_settings: ModelSettings,
        settings: RunSettings,
        resources: Resources,
    ) -> None:
        self.target, self.store, self.output = target, store, output
        self.model_settings, self.settings, self.resources = model_settings, settings, resources
        longest = read_json(target.folder / "config.json").get("max_position_embeddings")
        if not longest:
            raise UserError(
                f"{target.folder / 'config.json'}: no max_position_embeddings, so the window is unknown"
            )
        self.longest = int(longest)
        self.window = model_settings.max_length or min(self.longest, 8192)
        self.model_sha256 = fingerprint(target.folder)
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The language model, loaded on first use."""
        if self._model is None:
            self._model = load_backend(self.target.folder, self.model_settings, self.longest)
        return self._model

    def run(self, units: Sequence[Unit | HarnessUnit]) -> list[Finished]:
        """Runs the units that are not finished, and returns all of them.

        Raises:
            UserError: data is missing or has another schema.
        """
        finished = []
        bar: tqdm[Any] = progress(total=len(units), desc=f"benchmarks {self.target.model}", unit="language")
        with bar:
            for unit in units:
                bar.set_postfix_str(unit.name, refresh=False)
                finished.append(
                    self.run_unit(unit) if isinstance(unit, Unit) else self.run_harness_unit(unit)
                )
                bar.update()
        return finished

    def run_unit(self, unit: Unit) -> Finished:
        """The finished unit: read from disk or, if it is not there, run now."""
        items = self.items(unit)
        decided = self._decided(unit, items)
        key = hashlib.sha256(orjson.dumps(decided, option=orjson.OPT_SORT_KEYS)).hexdigest()
        path = unit_file(self.output, self.target.model, unit.benchmark.name, unit.language)
        found = read_unit(path)
        if found is not None and found.key == key:
            return found
        started, clock = now(), time.monotonic()
        fitted, shortened, cut = self._fit(unit, items)
        responses, scores = self._evaluate(unit, fitted, int(decided["max_new_tokens"]))
        facts = {"items": len(items), "shortened": shortened, "prompts_cut": cut}
        done = self._finished(
            unit.benchmark.name,
            unit.language,
            *(key, self._signature(unit, decided), scores),
            self._details(decided, facts, started, clock),
        )
        write_unit(path, done, _samples(fitted, responses, scores))
        return done

    def run_harness_unit(self, unit: HarnessUnit) -> Finished:
        """The same for lm-eval's own tasks."""
        with quiet():
            tasks = build_tasks(unit, self.store, (self.settings.shots or {}).get(unit.benchmark_name))
            prompts, items = request_sha256(tasks, self.settings.limit)
        settings = self.model_settings
        decided = {
            "model_sha256": self.model_sha256,
            "tasks": list(unit.tasks),
            "prompts_sha256": prompts,
            "limit": self.settings.limit,
            "window": self.window,
            "backend": settings.backend,
            "dtype": settings.dtype or self._default_dtype(),
            "seed": settings.seed,
            "lm-eval": _versions().get("lm-eval"),
        }
        key = hashlib.sha256(orjson.dumps(decided, option=orjson.OPT_SORT_KEYS)).hexdigest()
        path = unit_file(self.output, self.target.model, unit.benchmark_name, unit.language)
        found = read_unit(path)
        if found is not None and found.key == key:
            return found
        started, clock = now(), time.monotonic()
        self._seed(unit.name)
        model = self.model
        with quiet():
            scores, samples = evaluate_tasks(model, tasks, self.settings.limit)
        signature = "|".join(
            [
                *([f"limit:{self.settings.limit}"] if self.settings.limit else []),
                f"window:{self.window}|backend:{decided['backend']}|dtype:{decided['dtype']}",
                f"prompts:{prompts[:12]}|lm-eval:{decided['lm-eval']}",
            ]
        )
        details = self._details(decided, {"items": items}, started, clock)
        done = self._finished(unit.benchmark_name, unit.language, key, signature, scores, details)
        write_unit(path, done, samples)
        return done

    def _details(
        self, decided: Mapping[str, Any], facts: Mapping[str, Any], started: str, clock: float
    ) -> dict[str, Any]:
        reader = getattr(self._model, "reader", None)
        return {
            "model": self.target.model,
            "settings": dict(decided),
            **facts,
            # Since the last unit that was run: what this one took.
            "tokens_forwarded": reader.take() if reader is not None else None,
            "versions": dict(_versions()),
            "started": started,
            "seconds": round(time.monotonic() - clock, 3),
        }

    def _finished(
        self,
        benchmark: str,
        language: str,
        key: str,
        signature: str,
        scores: Mapping[str, Score],
        details: Mapping[str, Any],
    ) -> Finished:
        values = {
            name: {"value": score.value, "error": score.error, "n": score.n, "signature": score.signature}
            for name, score in scores.items()
        }
        return Finished(benchmark, language, key, self.model_sha256, signature, values, details)

    def _seed(self, name: str) -> None:
        """Makes a unit's sampled answers the same, whatever ran before it."""
        import torch

        seed = hashlib.sha256(f"{self.model_settings.seed}/{name}".encode()).digest()
        torch.manual_seed(int.from_bytes(seed[:7], "little"))

    def items(self, unit: Unit) -> list[Item]:
        """Items of a unit."""
        return build_items(
            unit.benchmark,
            unit.language,
            self.store,
            limit=self.settings.limit,
            shots=self.settings.shots_of(unit.benchmark),
        )

    def new_tokens(self, benchmark: Benchmark) -> int:
        """Maximum tokens of an answer: never more than half the window, to leave room for a prompt."""
        wanted = min(benchmark.max_new_tokens, self.settings.max_new_tokens or benchmark.max_new_tokens)
        return max(1, min(wanted, self.window // 2))

    def _decided(self, unit: Unit, items: Sequence[Item]) -> dict[str, Any]:
        benchmark = unit.benchmark
        prompts = hashlib.sha256()
        for item in items:
            prompts.update(orjson.dumps([item.prompt, item.choices, item.gold, item.reference]))
        settings = self.model_settings
        return {
            "model_sha256": self.model_sha256,
            "benchmark": benchmark.decisive(),
            **facts_of_programs(benchmark, self.resources.executor),
            "language": unit.language,
            "prompts_sha256": prompts.hexdigest(),
            "shots": self.settings.shots_of(benchmark),
            "limit": self.settings.limit,
            "max_new_tokens": self.new_tokens(benchmark),
            "window": self.window,
            "backend": settings.backend,
            "dtype": settings.dtype or self._default_dtype(),
            "seed": settings.seed,
            "spbleu_sha256": self.resources.spbleu.sha256
            if self.resources.spbleu and "spbleu" in benchmark.metrics
            else None,
            "bertscore": self.resources.bertscore.signature
            if self.resources.bertscore and "bertscore" in benchmark.metrics
            else None,
        }

    def _default_dtype(self) -> str:
        if self.model_settings.backend == "hf":
            import torch

            if (self.model_settings.device or "").startswith("cpu") or not torch.cuda.is_available():
                return "float32"
        return "auto"

    def _signature(self, unit: Unit, decided: Mapping[str, Any]) -> str:
        benchmark = unit.benchmark
        parts = [f"shots:{decided['shots']}"]
        if decided["limit"]:
            parts.append(f"limit:{decided['limit']}")
        if benchmark.kind == "choice":
            parts.append(f"scoring:{benchmark.scoring}")
        if benchmark.kind == "generation":
            sampling = benchmark.sampling
            how = f"t{sampling.temperature},p{sampling.top_p},seed{decided['seed']}" if sampling else "greedy"
            parts += [f"decoding:{how}", f"max_new:{decided['max_new_tokens']}"]
        if benchmark.program is not None:
            parts += [f"samples:{benchmark.samples}", f"toolchain:{decided['program']['version']}"]
        parts += [
            f"window:{decided['window']}",
            f"backend:{decided['backend']}",
            f"dtype:{decided['dtype']}",
            f"prompts:{decided['prompts_sha256'][:12]}",
            f"lm-eval:{_versions().get('lm-eval', '?')}",
        ]
        return "|".join(parts)

    def _fit(self, unit: Unit, items: Sequence[Item]) -> tuple[list[Item], int, int]:
        """Shortens items whose prompts exceed the window, if the benchmark names a field to shorten.

        Returns:
            The items, the number of shortened ones, and the number of prompts that are still too long
            (lm-eval cuts these at their beginning).
        """
        benchmark = unit.benchmark
        if benchmark.kind == "likelihood":
            return list(items), 0, 0
        room = self.window - (self.new_tokens(benchmark) if benchmark.kind == "generation" else 0) - 1
        self._check_choices(unit, items)
        fitted, shortened, cut = [], 0, 0
        for item in items:
            over = len(self.model.tok_encode(item.prompt)) - room
            shortened += over > 0 and benchmark.shorten is not None
            # A text within a prompt may have other tokens than by itself, so cut again until the prompt fits.
            for _ in range(8):
                if over <= 0 or benchmark.shorten is None:
                    break
                row = dict(item.row or {})
                text = str(row[benchmark.shorten])
                row[benchmark.shorten] = shorten(
                    self.model, [text], [len(self.model.plain_ids([text])[0]) - over]
                )[0]
                item = replace(
                    render(benchmark, benchmark.code(unit.language), row, item.examples, item.index), row=row
                )
                over = len(self.model.tok_encode(item.prompt)) - room
            cut += over > 0
            fitted.append(item)
        return fitted, shortened, cut

    def _check_choices(self, unit: Unit, items: Sequence[Item]) -> None:
        choices = [(item.index, choice) for item in items for choice in item.choices]
        # All in one call, each of which costs more than a choice.
        for (index, _), ids in zip(choices, self.model.plain_ids([text for _, text in choices]), strict=True):
            if len(ids) >= self.window:
                raise UserError(
                    f"{unit.name}, item {index}: a choice has {len(ids)} tokens, but the model's window only "
                    f"{self.window}; leave this benchmark out for this model"
                )

    def _evaluate(
        self, unit: Unit, items: Sequence[Item], max_new_tokens: int
    ) -> tuple[list[Response], dict[str, Score]]:
        from lm_eval.evaluator import evaluate

        from emma.tools.evaluation.benchmarks.tasks import BenchmarkTask

        task = BenchmarkTask(unit.benchmark, unit.language, items, max_new_tokens, self.resources)
        self._seed(unit.name)
        model = self.model
        with quiet():
            evaluate(lm=model, task_dict={unit.name: task}, log_samples=False, bootstrap_iters=0)
        return task.responses, task.scores


@functools.cache
def _versions() -> dict[str, str]:
    """Versions of what scores depend on; finding them takes as long as scoring a small language."""
    return package_versions(_PACKAGES)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences lm-eval's progress bars and notes, which would hide the run's own."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # Its bars always go to standard error; errors are still raised.
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
    sys.stderr.flush()


def _samples(
    items: Sequence[Item], responses: Sequence[Response], scores: Mapping[str, Score]
) -> Iterator[dict[str, Any]]:
    for number, (item, response) in enumerate(zip(items, responses, strict=True)):
        given = {key: value for key, value in asdict(response).items() if value not in (None, (), 0)}
        sample = {
            "index": item.index,
            "prompt": item.prompt,
            "prompt_sha256": hashlib.sha256(item.prompt.encode()).hexdigest(),
        }
        if item.cluster:
            sample["cluster"] = item.cluster
        if item.choices:
            sample |= {"choices": item.choices, "gold": item.gold}
        known = {"source": item.source, "reference": item.reference}
        sample |= {key: value for key, value in known.items() if value is not None}
        sample |= {"output" if key == "text" else key: value for key, value in given.items()}
        sample["scores"] = {
            name: score.items[number] for name, score in scores.items() if len(score.items) == len(items)
        }
        yield sample
