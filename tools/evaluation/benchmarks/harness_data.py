"""Gives lm-eval's tasks the mirror's data in place of the hub's, read by the same library in the same way."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.definitions import Source
from emma.tools.evaluation.benchmarks.layout import configurations, find_files
from emma.tools.evaluation.benchmarks.stores import Mirror, Store

__all__ = ["mirrored"]

_SPLITS = ("train", "validation", "dev", "test", "eval")
_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}


@contextlib.contextmanager
def mirrored(store: Store) -> Iterator[None]:
    """Lets lm-eval's tasks read a mirror; it offers no seam but `datasets.load_dataset`. The hub is left as it is.

    Raises:
        UserError: the hub does not answer, or refuses.
    """
    import datasets
    import datasets.exceptions

    if not isinstance(store, Mirror):
        try:
            yield
        except (ConnectionError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"the hub gives no data ({error}); check the network and the token, or give a mirror with --mirror"
            ) from None
        return
    original = datasets.load_dataset
    # Tables stay in memory: what `datasets` keeps on disk would be another copy of the mirror, in the user's home.
    with tempfile.TemporaryDirectory(prefix="emma-") as scratch:
        datasets.load_dataset = _Loader(original, store, Path(scratch))
        try:
            yield
        finally:
            datasets.load_dataset = original


class _Loader:
    """`datasets.load_dataset` over a mirror; what was read last stays, since all subjects of a language share a table."""

    def __init__(self, original: Callable[..., Any], mirror: Mirror, scratch: Path) -> None:
        self.original, self.mirror, self.scratch = original, mirror, scratch
        self._key, self._last = "", None

    def __call__(self, path: str, name: str | None = None, **options: Any) -> Any:
        import datasets

        if (key := repr((path, name, sorted(options.items())))) != self._key:
            self._last, self._key = self._load(path, name, options), key
        # A task may replace splits of its own dictionary.
        return datasets.DatasetDict(self._last) if isinstance(self._last, dict) else self._last

    def _load(self, path: str, name: str | None, options: Mapping[str, Any]) -> Any:
        from datasets.exceptions import DatasetsError

        source = Source(name=path, repository=path, splits={}, columns=())
        place = self.mirror.root / path
        what = f"{path}{f', {name}' if name else ''}"
        lacking = UserError(
            f"{what}: no file of it in {self.mirror.describe(source)}; put the repository there as it is on the hub"
        )
        if not place.is_dir():
            raise lacking
        # The mirror holds one revision, and `datasets` runs no code of a repository.
        given = {key: value for key, value in options.items() if key not in ("revision", "trust_remote_code")}
        reader, config = str(place), name
        placed = {"data_files", "data_dir"} & given.keys()
        if name is not None and not placed and name not in configurations(self.mirror.readme(source)):
            # As from the hub's parquet branch, whose folders are the configurations.
            reader, files = self._by_layout(source, name)
            if not files:
                raise lacking
            config, given = None, {**given, "data_files": files}
            if any(file.endswith(".tsv") for listed in files.values() for file in listed):
                given["sep"] = "\t"
        try:
            return self.original(reader, config, cache_dir=str(self.scratch), keep_in_memory=True, **given)
        except (ValueError, OSError, DatasetsError) as error:
            raise UserError(f"{what}: `datasets` cannot read {place} ({error.__cause__ or error})") from None

    def _by_layout(self, source: Source, name: str) -> tuple[str, Mapping[str, list[str]]]:
        names = self.mirror.names(source)
        found = {split: find_files(names, name, split) for split in _SPLITS}
        files = {
            split: [str(self.mirror.path(source, file)) for file in listed]
            for split, listed in found.items()
            if listed
        }
        endings = {Path(file).suffix for listed in files.values() for file in listed}
        if len(readers := {_READERS[ending] for ending in endings}) > 1:
            raise UserError(f"{source.name}, {name}: files of several formats ({', '.join(sorted(endings))})")
        return next(iter(readers), ""), files
