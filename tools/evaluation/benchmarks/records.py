"""Finished units on disk: a pair of files each, scores and samples, so that an interrupted run repeats none.

The files of a unit, which is one benchmark in one language:

    <evaluation>/benchmarks/<model>/<benchmark>/<language>.json           scores and all that determined them
    <evaluation>/benchmarks/<model>/<benchmark>/<language>.samples.zst    one line of JSON per item
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from emma.base.errors import UserError
from emma.base.files import atomic_write, read_json, write_json
from emma.tools.evaluation.results import Result

__all__ = ["Finished", "read_samples", "read_unit", "samples_file", "unit_file", "write_unit"]

_LEVEL = 9


@dataclass(frozen=True)
class Finished:
    """A finished unit.

    Attributes:
        benchmark, language: what was run.
        key: SHA-256 over everything that determines the scores: model, data, prompts, settings.
        model_sha256: SHA-256 of the model's files.
        signature: readable summary: shots, limits, backend, hash of the prompts, versions.
        scores: metric → value, error, n, signature.
        details: versions, hashes, times, counts.
    """

    benchmark: str
    language: str
    key: str
    model_sha256: str
    signature: str
    scores: Mapping[str, Mapping[str, Any]]
    details: Mapping[str, Any]

    def results(self, model: str) -> list[Result]:
        """The unit's rows of the long table."""
        return [
            Result(
                model,
                self.benchmark,
                self.language,
                metric,
                score["n"],
                score["value"],
                score["error"],
                "|".join(filter(None, (self.signature, score["signature"]))),
            )
            for metric, score in self.scores.items()
        ]


def unit_file(output: Path, model: str, benchmark: str, language: str) -> Path:
    """Path of a unit's scores."""
    return output / "benchmarks" / model.replace("/", "_") / benchmark / f"{language}.json"


def samples_file(path: Path) -> Path:
    """Path of the samples beside a unit's scores."""
    return path.with_suffix(".samples.zst")


def read_unit(path: Path) -> Finished | None:
    """A finished unit; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return Finished(**read_json(path))
    except TypeError as error:
        raise UserError(
            f"{path}: written by another version ({error}); remove it to run the unit again"
        ) from None


def write_unit(path: Path, unit: Finished, samples: Iterable[Mapping[str, Any]]) -> None:
    """Writes samples, then scores: the scores mark the unit as finished."""
    import zstandard

    with (
        atomic_write(samples_file(path)) as handle,
        zstandard.ZstdCompressor(level=_LEVEL).stream_writer(handle, closefd=False) as stream,
    ):
        for sample in samples:
            stream.write(orjson.dumps(sample) + b"\n")
    write_json(path, asdict(unit))


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Samples of a unit.

    Each has `index prompt prompt_sha256`, `choices gold likelihoods` or `source reference output` (a source only in
    translations), and `scores` (metric → the item's value or sufficient statistics).

    Args:
        path: path of the unit's scores.

    Raises:
        UserError: the file is missing or damaged.
    """
    import zstandard

    samples = samples_file(path)
    if not samples.is_file():
        raise UserError(f"{samples}: no such file; run the unit again")
    try:
        with samples.open("rb") as handle, zstandard.ZstdDecompressor().stream_reader(handle) as stream:
            for line in io.TextIOWrapper(stream, encoding="utf-8", newline="\n"):
                yield orjson.loads(line)
    except (zstandard.ZstdError, ValueError) as error:
        raise UserError(f"{samples}: damaged ({error}); remove it and run the unit again") from None
