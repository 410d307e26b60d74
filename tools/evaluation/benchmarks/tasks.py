"""A benchmark in one language, as an lm-eval task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task, TaskConfig
from lm_eval.filters import build_filter_ensemble

from emma.tools.evaluation.benchmarks.backends import LAST_TOKEN, ROLLING, SAMPLE
from emma.tools.evaluation.benchmarks.definitions import Benchmark
from emma.tools.evaluation.benchmarks.items import Item, stops
from emma.tools.evaluation.benchmarks.metrics import Resources, measure
from emma.tools.evaluation.benchmarks.programs import run_programs
from emma.tools.evaluation.benchmarks.scores import Response, Score

__all__ = ["BenchmarkTask"]

_RESPONSES = "responses"


class BenchmarkTask(Task):
    """Requests and scores for the items of one language.

    Prompts arrive complete, including their worked examples, so lm-eval adds none.

    Args:
        benchmark: the benchmark.
        language: the language's code in results.
        items: the items, in order.
        max_new_tokens: maximum tokens of an answer.
        resources: models that metrics need.
    """

    VERSION = 1

    def __init__(
        self,
        benchmark: Benchmark,
        language: str,
        items: Sequence[Item],
        max_new_tokens: int,
        resources: Resources,
    ) -> None:
        self.benchmark, self.language, self.items = benchmark, language, list(items)
        self.max_new_tokens, self.resources = max_new_tokens, resources
        self.responses: list[Response] = []
        self.scores: dict[str, Score] = {}
        self.OUTPUT_TYPE = {"choice": "multiple_choice", "generation": "generate_until"}.get(
            benchmark.kind, "loglikelihood_rolling"
        )
        self._config = TaskConfig(
            task=f"{benchmark.name}/{language}",
            num_fewshot=0,
            output_type=self.OUTPUT_TYPE,
            generation_kwargs=self._options() if benchmark.kind == "generation" else None,
            repeats=1,
        )
        self._filters = [build_filter_ensemble("none", [("take_first", None)])]
        self._instances: list[Instance] | None = None

    def has_training_docs(self) -> bool:
        """No: examples are already in the prompts."""
        return False

    def has_validation_docs(self) -> bool:
        """No: only one split is scored, and it is called test."""
        return False

    def has_test_docs(self) -> bool:
        """Yes: the items."""
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        """One document per item."""
        return [
            {"index": number, "prompt": item.prompt, "reference": item.reference, "gold": item.gold}
            for number, item in enumerate(self.items)
        ]

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """The whole prompt."""
        return str(doc["prompt"])

    def doc_to_target(self, doc: dict[str, Any]) -> Any:
        """Index of the correct choice, or the reference."""
        return doc["gold"] if self.benchmark.kind == "choice" else doc["reference"]

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **kwargs: Any) -> str:
        """The whole prompt, with nothing added."""
        return self.doc_to_text(doc)

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """Requests of one item."""
        kind, arguments = self._arguments(self.items[doc["index"]], ctx)
        return [
            Instance(request_type=kind, doc=doc, arguments=argument, idx=number, metadata=kwargs["metadata"])
            for number, argument in enumerate(arguments)
        ]

    def _arguments(self, item: Item, prompt: str) -> tuple[str, list[tuple[Any, ...]]]:
        benchmark = self.benchmark
        if benchmark.kind == "likelihood":
            return ROLLING, [(prompt,)]
        if benchmark.kind == "generation":
            options = self._options(item)
            if benchmark.samples == 1:
                return "generate_until", [(prompt, options)]
            return "generate_until", [(prompt, {**options, SAMPLE: n}) for n in range(benchmark.samples)]
        labels = [benchmark.delimiter + choice for choice in item.choices]
        if benchmark.scoring == "last_token":
            return LAST_TOKEN, [(prompt, label, benchmark.prompt_tokens) for label in labels]
        return "loglikelihood", [(prompt, label) for label in labels]

    def _options(self, item: Item | None = None) -> dict[str, Any]:
        options: dict[str, Any] = {
            "until": list(stops(self.benchmark, self.benchmark.code(self.language), item)),
            "max_gen_toks": self.max_new_tokens,
            "do_sample": self.benchmark.sampling is not None,
        }
        if (sampling := self.benchmark.sampling) is not None:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        return options

    def process_results(self, doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """Collects the model's response; scores are computed later, over all items together."""
        return {_RESPONSES: (doc["index"], self._response(doc["prompt"], results))}

    def _response(self, prompt: str, results: Sequence[Any]) -> Response:
        if self.benchmark.program is not None:
            return Response(texts=tuple(map(str, results)))
        if self.benchmark.kind == "generation":
            return Response(text=str(results[0]))
        if self.benchmark.kind == "likelihood":
            nll, tokens = results[0]
            return Response(nll=float(nll), tokens=int(tokens), bytes=len(prompt.encode()))
        if self.benchmark.scoring == "last_token":
            return Response(likelihoods=tuple(float(value) for value in results))
        return Response(likelihoods=tuple(float(value) for value, _ in results))

    def aggregation(self) -> dict[str, Callable[..., Any]]:
        """Computes scores from all responses: lm-eval gets the first metric's value, `scores` holds all."""
        return {_RESPONSES: partial(self._score)}

    def higher_is_better(self) -> dict[str, bool]:
        """A placeholder for lm-eval; recipes/evaluation/measures.yaml has the direction of each metric."""
        return {_RESPONSES: True}

    def _score(self, numbered: Sequence[tuple[int, Response]]) -> float:
        self.responses = [response for _, response in sorted(numbered, key=lambda pair: pair[0])]
        if self.benchmark.program is not None:
            run = run_programs(
                self.benchmark, self.language, self.items, self.responses, self.resources.executor
            )
            self.responses, self.scores = run
        else:
            self.scores = measure(self.benchmark, self.language, self.items, self.responses, self.resources)
        return next(iter(self.scores.values())).value
