"""The gate before packing: a fast engine that is certified may encode the languages on whose first documents it agrees
with the reference."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor

import numpy as np
import pyarrow as pa

from emma.base.processes import result_of
from emma.tools.pack.bad_lines import BadLines
from emma.tools.pack.columns import as_array
from emma.tools.pack.count import count_records
from emma.tools.pack.documents import DocumentMaker
from emma.tools.pack.encoded import agree
from emma.tools.pack.encoder import gate_sample, sides_of
from emma.tools.pack.engine import REFERENCE, EngineName, encode_or_none, load_engine
from emma.tools.pack.inputs import Segment
from emma.tools.pack.plan import ComponentPlan, PackSettings
from emma.tools.pack.records import read_heads

__all__ = ["Samples", "gate_samples", "gate_verdicts"]

# Bytes that are read of a file, at least and of all files together; most folders, and about most files, of which a
# file is read.
_HEAD = 64 << 10
_HEADS = 32 << 20
_FOLDERS = 2048
_FILES = 256
# Files of language pairs that are read for each language.
_FILES_A_SIDE = 2
# The share of documents to encode twice follows from their number. With fewer than were estimated a larger share is
# needed, and all text is read once more; so less is assumed, where records could be counted and where not.
_COUNTED, _GUESSED = 0.95, 0.7

Samples = dict[str, pa.Array]
"""The first documents of each language (for pairs: that it is a side of)."""


def gate_verdicts(
    settings: PackSettings, engine: EngineName, samples: Samples, pool: Executor, workers: int
) -> dict[str, bool]:
    """Whether the engine may encode a language, for every language of the samples.

    Args:
        settings: what to pack.
        engine: a fast engine.
        samples: of `gate_samples`.
        pool: processes that have both engines.
        workers: number of these processes.
    """
    count = max(1, min(workers, len(samples)))
    parts = [dict(list(samples.items())[start::count]) for start in range(count)]
    tasks = [pool.submit(_verdicts, settings, engine, part) for part in parts]
    return {language: equal for task in tasks for language, equal in result_of(task).items()}


def _verdicts(settings: PackSettings, name: EngineName, samples: Samples) -> dict[str, bool]:
    """Runs in a worker: whether both engines agree on each language's sample."""
    engine, reference = load_engine(name, settings.tokenizer), load_engine(REFERENCE, settings.tokenizer)
    if not samples:
        return {}
    expected = reference.encode(pa.concat_arrays(list(samples.values())))
    stops = np.cumsum([len(texts) for texts in samples.values()]).tolist()
    return {
        language: agree(encode_or_none(engine, texts), expected.documents(stop - len(texts), stop))
        for (language, texts), stop in zip(samples.items(), stops, strict=True)
    }


def gate_samples(settings: PackSettings, plan: ComponentPlan) -> tuple[Samples, int]:
    """The first documents of the languages in the first records of the input files, and how many documents all input
    holds: an estimate that is seldom above.

    At least 64 KiB of a file are read, and more of each where there are few files; of many files in a folder, and of
    many pairs of the same languages, some. A language that shows up later is gated within its unit.
    """
    component = settings.pack.components[plan.name]
    pairs = component.kind == "bilingual"
    segments = list(_first_segments(plan, component.language, pairs=pairs))
    head = max(_HEAD, _HEADS // max(len(segments), 1))
    maker = DocumentMaker(component, settings.pack)
    # How many are too many is not for some files' beginnings to say.
    bad = BadLines(1.0 if component.max_bad_lines else 0.0)
    size = rows = documents = 0
    found: dict[str, list[pa.Array]] = {}

    def tables() -> Iterator[pa.Table]:
        nonlocal size, rows, documents
        for batch in read_heads(segments, *maker.fields, bytes_each=head, bad=bad):
            start = 0
            for piece in batch.pieces:
                size += batch.table.slice(start, piece.rows).nbytes
                rows += piece.rows
                documents += -(-piece.rows // (settings.pack.bilingual.pairs_per_document if pairs else 1))
                start += piece.rows
            yield from maker.add(batch)
        yield from maker.finish()

    for table in tables():
        for language, texts in _first_of_languages(table, settings.pack.gate_documents):
            for side in sides_of(language, pairs=pairs):
                have = found.setdefault(side, [])
                if sum(map(len, have)) < settings.pack.gate_documents:
                    have.append(texts)
    samples = {
        language: gate_sample(pa.concat_arrays(texts), settings.pack.gate_documents)
        for language, texts in sorted(found.items())
    }
    if (records := count_records(plan.inputs)) is not None:
        return samples, round(_COUNTED * records * documents / max(rows, 1))
    return samples, round(_GUESSED * documents * sum(unit.bytes for unit in plan.units) / max(size, 1))


def _first_segments(plan: ComponentPlan, language: str | None, *, pairs: bool) -> Iterator[Segment]:
    """The beginnings of some files: of every folder, as long as there are not too many; of pairs, for every language."""
    folders: dict[str, list[Segment]] = {}
    for unit in plan.units:
        for segment in unit.segments:
            if segment.first:
                folders.setdefault(segment.file.folder, []).append(segment)
    if pairs and language is None:
        seen: dict[str, int] = {}
        for folder, segments in folders.items():
            sides = sides_of(folder, pairs=True)
            if any(seen.get(side, 0) < _FILES_A_SIDE for side in sides):
                yield segments[0]
                seen.update({side: seen.get(side, 0) + 1 for side in sides})
        return
    each = max(1, _FILES // len(folders)) if folders else 0
    for segments in list(folders.values())[:: max(1, -(-len(folders) // _FOLDERS))]:
        yield from segments[:: max(1, -(-len(segments) // each))]


def _first_of_languages(table: pa.Table, documents: int) -> Iterator[tuple[str, pa.Array]]:
    """At most a given number of texts per language."""
    languages = as_array(table["language"]).dictionary_encode()
    codes, texts = languages.indices.to_numpy(zero_copy_only=False), as_array(table["text"])
    for code, language in enumerate(languages.dictionary.to_pylist()):
        yield language, texts.take(pa.array(np.flatnonzero(codes == code)[:documents]))
