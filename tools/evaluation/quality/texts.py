"""The texts that a model generated for benchmarks, as `emma evaluate run` saved them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.answers import processed
from emma.tools.evaluation.benchmarks.definitions import benchmark_names, get_benchmark
from emma.tools.evaluation.benchmarks.records import Finished, read_samples, read_unit, write_unit
from emma.tools.evaluation.benchmarks.scores import Score

__all__ = ["Generated", "Translation", "add_scores", "generated_units"]

_HARNESS = "lm_eval."
"""How the names of lm-eval's own tasks begin."""


@dataclass(frozen=True)
class Translation:
    """A sentence, its translation by the model, and the reference."""

    source: str
    output: str
    reference: str


@dataclass(frozen=True)
class Generated:
    """A finished unit whose answers are texts.

    Attributes:
        path, unit: its scores.
        asked: language that the outputs should be in.
        source: language of the sources; None if it translates nothing.
    """

    path: Path
    unit: Finished
    asked: str
    source: str | None

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.unit.benchmark}/{self.unit.language}"

    def samples(self) -> list[dict[str, Any]]:
        """All samples, in the order of the items."""
        return list(read_samples(self.path))

    def outputs(self, samples: Sequence[Mapping[str, Any]]) -> list[str]:
        """What is scored of each output."""
        if self.unit.benchmark.startswith(_HARNESS):
            return [_response(sample) or "" for sample in samples]
        benchmark = get_benchmark(self.unit.benchmark)
        return [processed(benchmark, str(sample.get("output", ""))) for sample in samples]

    def translations(self, samples: Sequence[Mapping[str, Any]]) -> list[Translation]:
        """Source, output and reference of each item.

        Raises:
            UserError: the sources were not saved.
        """
        for sample in samples:
            if "source" not in sample or "reference" not in sample:
                raise UserError(
                    f"{self.path}: item {sample['index']} has no source; an earlier version saved it: remove the file, and "
                    "run the benchmark again"
                )
        outputs = self.outputs(samples)
        return [
            Translation(sample["source"], output, sample["reference"])
            for sample, output in zip(samples, outputs, strict=True)
        ]


def generated_units(
    folder: Path,
    model: str,
    benchmarks: frozenset[str] | None = None,
    languages: frozenset[str] | None = None,
) -> Iterator[Generated]:
    """Finished units of a model whose answers are texts, sorted.

    Args:
        folder: evaluation folder.
        model: name in the results.
        benchmarks, languages: only these; None: all.
    """
    definitions = {name: get_benchmark(name) for name in benchmark_names(on_demand=True)}
    # Programs are texts in no natural language.
    known = {
        name for name, found in definitions.items() if found.kind == "generation" and found.program is None
    }
    root = folder / "benchmarks" / model.replace("/", "_")
    for path in sorted(root.glob("*/*.json")):
        name = path.parent.name
        if name not in known and not name.startswith(_HARNESS):
            continue
        if (benchmarks is not None and name not in benchmarks) or (
            languages is not None and languages.isdisjoint({path.stem, *path.stem.split("-")})
        ):
            continue
        unit = read_unit(path)
        if unit is None:
            continue
        if name in known:
            asked, source = _languages(unit)
            yield Generated(path, unit, asked, source)
        elif all(_response(sample) is not None for sample in read_samples(path)):
            yield Generated(path, unit, unit.language, None)


def _languages(unit: Finished) -> tuple[str, str | None]:
    benchmark = get_benchmark(unit.benchmark)
    asked = benchmark.output_language(unit.language)
    if benchmark.from_english is None:
        return asked, None
    return asked, "eng_Latn" if benchmark.from_english else benchmark.code(unit.language)


def _response(sample: Mapping[str, Any]) -> str | None:
    """The text that one of lm-eval's tasks got; None if the item is no generation."""
    found = sample.get("responses")
    while isinstance(found, list) and found:
        found = found[0]
    return found if isinstance(found, str) else None


def add_scores(
    found: Generated,
    samples: Sequence[dict[str, Any]],
    scores: Mapping[str, Score],
    *,
    instead_of: Sequence[str],
) -> Finished:
    """Writes scores beside a unit's own, per item too; what is not among them of `instead_of` is taken away.

    Samples come first, so that an interrupted run leaves at most values that the unit does not list.
    """
    kept = {name: value for name, value in found.unit.scores.items() if name not in instead_of}
    for name, score in scores.items():
        kept[name] = {
            "value": score.value,
            "error": score.error,
            "n": score.n,
            "signature": score.signature,
        }
    for place, sample in enumerate(samples):
        own = {name: value for name, value in sample["scores"].items() if name not in instead_of}
        sample["scores"] = own | {name: score.items[place] for name, score in scores.items()}
    unit = Finished(**{**vars(found.unit), "scores": kept})
    write_unit(found.path, unit, samples)
    return unit
