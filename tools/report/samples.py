"""A few of a model's answers for the atlas: enough to see what a score stands for, within a fixed number of bytes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emma.tools.evaluation.benchmarks.records import read_samples, samples_file, unit_file
from emma.tools.languages.codes import subject
from emma.tools.report.records import RunRecord
from emma.tools.report.verdicts import Judged, latest

__all__ = ["samples_of"]

BUDGET = 1_200_000
"""Bytes of all samples of a page, in UTF-8."""

_MOST = 6
"""Samples of a language."""
_LONGEST = 400
"""Characters of a text that are shown: the end of a prompt, the start of an answer."""


def samples_of(judged: Judged, rows: Sequence[dict[str, Any]]) -> None:
    """Adds `samples` to rows of the atlas: one of each language in turn, then a second, while the budget lasts.

    Args:
        judged: the page's runs and verdicts.
        rows: languages with `codes`; a language without stored answers gets nothing.
    """
    files: dict[str, list[tuple[RunRecord, int, str, str]]] = defaultdict(list)
    for view, run in enumerate(judged.runs):
        for (name, benchmark), compared in judged.benchmarks.items():
            if name == run.name:
                for where in compared.scores.scores:
                    files[subject(where)].append((run, view, benchmark, where))
    answering = [(row, _answers([file for code in row["codes"] for file in files[code]])) for row in rows]
    left = BUDGET
    for _ in range(_MOST):
        for row, answers in answering:
            sample = next(answers, None)
            if sample is None:
                continue
            left -= sum(len(value.encode()) for value in sample.values() if isinstance(value, str))
            if left < 0:
                return
            row.setdefault("samples", []).append(sample)


def _answers(files: Sequence[tuple[RunRecord, int, str, str]]) -> Iterator[dict[str, Any]]:
    """First answers of every benchmark and run in turn, then second ones; the files are read one sample at a time."""
    open_ones = []
    for run, view, benchmark, where in files:
        model = latest(run)
        if model is None:
            continue
        path = unit_file(run.folder / "evaluation", model.name, benchmark, where)
        if samples_file(path).is_file():
            open_ones.append(_shown(path, view, benchmark, where))
    for turn in itertools.zip_longest(*open_ones):
        yield from (sample for sample in turn if sample is not None)


def _shown(path: Path, view: int, benchmark: str, where: str) -> Iterator[dict[str, Any]]:
    for sample in itertools.islice(read_samples(path), 2):
        if (texts := _texts(sample)) is not None:
            yield {"view": view, "benchmark": benchmark, "language": where, **texts}


def _texts(sample: Mapping[str, Any]) -> dict[str, str] | None:
    """Prompt, the model's answer, and the right one; None where only likelihoods of whole texts were measured."""
    prompt = str(sample["prompt"])
    if likelihoods := sample.get("likelihoods"):
        choices = sample["choices"]
        answer, reference = choices[likelihoods.index(max(likelihoods))], choices[sample["gold"]]
    elif sample.get("texts"):
        # Of several programs the first, and how it ended.
        answer = f"{_cut(sample['texts'][0])}\n({sample['outcomes'][0]})"
        reference = sample.get("reference", "")
    elif "output" in sample or "reference" in sample:
        answer, reference = sample.get("output", ""), sample.get("reference", "")
    elif len(sample.get("continuations", ())) == len(sample.get("responses", ())) > 1:
        choices, values = sample["continuations"], [part[0][0] for part in sample["responses"]]
        answer, reference = choices[values.index(max(values))], sample["target"]
        if reference.isdigit() and int(reference) < len(choices):
            reference = choices[int(reference)]
    elif "responses" in sample:
        answer, reference = sample["responses"], sample["target"]
        while isinstance(answer, list) and answer:
            answer = answer[0]
    else:
        return None
    if not isinstance(answer, str):
        return None
    shown = ("…" if len(prompt) > _LONGEST else "") + prompt[-_LONGEST:]
    return {"prompt": shown, "answer": _cut(answer), "reference": _cut(str(reference))}


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
