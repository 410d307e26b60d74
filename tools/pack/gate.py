"""The gate before packing: the fast engine may encode the languages on whose first documents it agrees with
the reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor

import numpy as np
import pyarrow as pa

from emma.base.errors import UserError
from emma.base.processes import result_of
from emma.tools.pack.columns import as_array
from emma.tools.pack.documents import DocumentMaker
from emma.tools.pack.engine import (
    REFERENCE,
    Encoded,
    Engine,
    EngineName,
    agree,
    encode_or_none,
    gate_sample,
    load_engine,
    usable_engine,
)
from emma.tools.pack.inputs import Segment, Unit
from emma.tools.pack.plan import ComponentPlan, PackSettings
from emma.tools.pack.records import read_segment

__all__ = ["gate_samples", "gate_verdicts"]

_HEAD = 64 << 10
_HEADS = 32 << 20

_Samples = dict[str, pa.Array]
"""The first documents of each language."""


def gate_verdicts(
    settings: PackSettings, plan: ComponentPlan, pool: Executor, workers: int
) -> tuple[EngineName, dict[str, str], dict[str, bool]]:
    """The engine that can read the tokenizer, why faster ones were passed over, and whether it may encode a
    language, for every language that `gate_samples` finds.

    Args:
        settings: what to pack.
        plan: the component's plan.
        pool: processes that have the fast engine.
        workers: number of these processes.

    Raises:
        UserError: the engine that the recipe names cannot read the tokenizer, or one that is installed is
            broken.
    """
    samples = gate_samples(settings, plan)
    count = max(1, min(workers, len(samples)))
    parts = [dict(list(samples.items())[start::count]) for start in range(count)]
    # Before the first submission, which blocks until the process that workers are forked from has loaded its
    # engine.
    reference = load_engine(REFERENCE, settings.tokenizer)
    tasks = [pool.submit(_encode_fast, settings, part) for part in parts]
    expected = _encode_together(reference, samples)
    results = [result_of(task) for task in tasks]
    (name, passed_over), *others = [usable for usable, _ in results]
    if any(other != (name, passed_over) for other in others):
        raise UserError(
            f"{settings.tokenizer.path}: processes on this machine loaded different engines; run the "
            "command again, or name one in data.pack.engine"
        )
    fast = {language: encoded for _, part in results for language, encoded in part.items()}
    return name, passed_over, {language: agree(fast[language], expected[language]) for language in samples}


def _encode_fast(
    settings: PackSettings, samples: _Samples
) -> tuple[tuple[EngineName, dict[str, str]], dict[str, Encoded | None]]:
    """Runs in a worker: its engine, as `usable_engine` returns it, and the engine's ids of the samples."""
    usable = usable_engine(settings.pack.engine, settings.tokenizer)
    engine = load_engine(usable[0], settings.tokenizer)
    return usable, {language: encode_or_none(engine, texts) for language, texts in samples.items()}


def _encode_together(engine: Engine, samples: _Samples) -> dict[str, Encoded]:
    """All languages in one batch, which the engine spreads over the cores."""
    if not samples:
        return {}
    encoded = engine.encode(pa.concat_arrays(list(samples.values())))
    stops = np.cumsum([len(texts) for texts in samples.values()]).tolist()
    return {
        language: encoded.documents(stop - len(texts), stop)
        for (language, texts), stop in zip(samples.items(), stops, strict=True)
    }


def gate_samples(settings: PackSettings, plan: ComponentPlan) -> _Samples:
    """The first documents of every language in the first records of the input files.

    At least 64 KiB of every file are read, and more of each where there are few files.
    """
    component = settings.pack.components[plan.name]
    head = max(_HEAD, _HEADS // max(len(plan.inputs), 1))
    found: dict[str, list[pa.Array]] = {}
    for segment in _first_segments(plan.units):
        maker = DocumentMaker(component, settings.pack)
        batch = next(iter(read_segment(segment, *maker.fields, batch_bytes=head)), None)
        if batch is None:
            continue
        for table in (*maker.add(batch), *maker.finish()):
            for language, texts in _first_of_languages(table, settings.pack.gate_documents):
                have = found.setdefault(language, [])
                if sum(map(len, have)) < settings.pack.gate_documents:
                    have.append(texts)
    return {
        language: gate_sample(pa.concat_arrays(texts), settings.pack.gate_documents)
        for language, texts in sorted(found.items())
    }


def _first_segments(units: Iterable[Unit]) -> Iterator[Segment]:
    for unit in units:
        yield from (segment for segment in unit.segments if segment.first)


def _first_of_languages(table: pa.Table, documents: int) -> Iterator[tuple[str, pa.Array]]:
    """At most a given number of texts per language."""
    languages = as_array(table["language"]).dictionary_encode()
    codes, texts = languages.indices.to_numpy(zero_copy_only=False), as_array(table["text"])
    for code, language in enumerate(languages.dictionary.to_pylist()):
        yield language, texts.take(pa.array(np.flatnonzero(codes == code)[:documents]))
