"""A mirror folder of the benchmarks' data: fill it where there is a network, check it where there is none."""

from __future__ import annotations

import http.client
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import atomic_write
from emma.base.manifest import MANIFEST_NAME, FileRecord, Manifest, now, package_versions
from emma.base.progress import progress
from emma.base.staging import staged_folder
from emma.tools.evaluation.benchmarks.definitions import (
    ENGLISH,
    Benchmark,
    Source,
    get_benchmark,
    spbleu_model,
)
from emma.tools.evaluation.benchmarks.harness import PREFIX, build_tasks, harness_units
from emma.tools.evaluation.benchmarks.items import build_items
from emma.tools.evaluation.benchmarks.metrics import NEEDS_SPBLEU
from emma.tools.evaluation.benchmarks.rows import available, files_of
from emma.tools.evaluation.benchmarks.stores import HubStore, Mirror
from emma.tools.hub.asking import UnreachableError
from emma.tools.hub.download import download_files, missing

__all__ = ["Checked", "Fetched", "check_mirror", "fetch_sources"]

_README = "README.md"
_STAGE = "evaluate-fetch"
_MARKS = ".fetched"
_WORKERS = 4
_CHUNK = 1 << 20
_TIMEOUT = 60
_FEW = 8


@dataclass
class Fetched:
    """What was (or would be) fetched, what must be added by hand, and what failed."""

    folder: Path
    files: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    revisions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "folder": str(self.folder),
            "files": self.files,
            "kept": self.kept,
            "by_hand": self.by_hand,
            "failed": self.failed,
            "revisions": self.revisions,
        }

    def text(self) -> str:
        """The report as text."""
        lines = [f"{len(self.files):,} files fetched, {len(self.kept):,} already there"]
        lines += [f"by hand: {line}" for line in self.by_hand]
        lines += [f"failed: {line}" for line in self.failed]
        return "\n".join(lines)


@dataclass
class Checked:
    """What a mirror holds and what is wrong with it."""

    folder: Path
    languages: dict[str, int] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "folder": str(self.folder),
            "languages": self.languages,
            "missing": self.missing,
            "faults": self.faults,
        }

    def text(self) -> str:
        """The report as text."""
        lines = [f"{'benchmark':<26}{'languages':>10}{'missing':>9}"]
        for name, count in self.languages.items():
            lines.append(f"{name:<26}{count:>10,}{len(self.missing.get(name, ())):>9,}")
        lines += [f"fault: {fault}" for fault in self.faults]
        return "\n".join(lines)


def _sources(names: Sequence[str]) -> list[Source]:
    return list({get_benchmark(name).source: get_benchmark(name).data for name in names}.values())


def fetch_sources(
    folder: Path, names: Sequence[str], languages: Collection[str] | None, *, dry_run: bool = False
) -> Fetched:
    """Downloads the data of benchmarks into a mirror.

    Args:
        folder: the mirror; created if necessary.
        names: benchmarks.
        languages: the sources' language codes; default all.
        dry_run: download nothing.
    """
    report = Fetched(folder)
    report.by_hand += [
        f"{name}: put the repositories that lm-eval reads into the mirror as they are on the hub "
        "(hf download NAME --repo-type dataset --local-dir MIRROR/NAME)"
        for name in names
        if name.startswith(PREFIX)
    ]
    names = [name for name in names if not name.startswith(PREFIX)]
    hub = HubStore()
    for source in _sources(names):
        try:
            if source.repository:
                _fetch_repository(source, hub, folder, languages, report, dry_run)
            elif source.archive:
                _fetch_archive(source, folder, report, dry_run)
            else:
                report.by_hand.append(f"{source.name}: {source.obtain}")
        except UnreachableError as error:
            report.failed.append(f"{error}. What else was asked for has not been tried")
            break
        except UserError as error:
            hint = "; first accept its terms on the hub and log in (hf auth login)"
            report.failed.append(f"{source.name}: {error}{hint if source.gated else ''}")
    else:
        if any(NEEDS_SPBLEU in get_benchmark(name).metrics for name in names):
            _fetch_spbleu(folder, report, dry_run)
    if not dry_run and folder.is_dir():
        _write_manifest(folder, report)
    return report


def _fetch_repository(
    source: Source,
    hub: HubStore,
    folder: Path,
    languages: Collection[str] | None,
    report: Fetched,
    dry_run: bool,
) -> None:
    names = hub.names(source)
    codes = (
        [code for code in source.codes if languages is None or code in languages]
        if not source.whole
        else [""]
    )
    if not codes:
        return
    if source.pair:
        codes.append(ENGLISH)
    wanted = {
        name for code in codes for split in source.splits for name in files_of(hub, source, code, split)
    }
    if not wanted:
        raise UserError(
            f"{source.repository}@{source.revision}: none of its {len(names)} files matches a known layout "
            f"({', '.join(names.names[:_FEW])}, ...)"
        )
    if _README in names:
        wanted.add(_README)
    listing = hub.listed(source)
    place, marks = folder / source.root, folder / _MARKS / source.root
    files = [(file.path, file) for file in listing.files if file.path in wanted]
    lacking = missing(place, marks, files)
    absent = {name for name, _ in lacking}
    report.kept += [f"{source.root}/{name}" for name, _ in files if name not in absent]
    report.files += [f"{source.root}/{name}" for name, _ in lacking]
    if not dry_run:
        bar: Any = progress(
            total=sum(file.bytes for _, file in lacking), desc=source.root, unit="B", unit_scale=True
        )
        with bar:
            download_files(place, marks, listing, lacking, _WORKERS, bar.update)
        report.revisions[source.root] = listing.commit


def _fetch_archive(source: Source, folder: Path, report: Fetched, dry_run: bool) -> None:
    if available(Mirror(folder), source) if folder.is_dir() else False:
        report.kept.append(source.root)
        return
    report.files.append(source.root)
    if dry_run:
        return
    archive, inside = folder / f".{source.name}.tar.gz", f"{source.root}/"
    try:
        _download(source.archive or "", archive)
        # All of it or nothing: `available` would take a part for the whole.
        with tarfile.open(archive) as tar, staged_folder(folder / source.root) as partial:
            members = [
                member.replace(name=name.removeprefix(inside), deep=False)
                for member in tar.getmembers()
                if (name := member.name.removeprefix("./")).startswith(inside)
            ]
            if not members:
                raise UserError(f"{source.archive}: contains no folder {source.root}")
            tar.extractall(partial, members=members, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{source.archive}: {error}") from None
    finally:
        archive.unlink(missing_ok=True)


def _fetch_spbleu(folder: Path, report: Fetched, dry_run: bool) -> None:
    from emma.base.files import sha256_file

    model = spbleu_model()
    path = folder / model.file
    if path.is_file() and sha256_file(path) == model.sha256:
        report.kept.append(model.file)
        return
    report.files.append(model.file)
    if dry_run:
        return
    try:
        _download(model.address, path)
    except OSError as error:
        report.failed.append(f"{model.file}: {model.address}: {error}")
        return
    if (found := sha256_file(path)) != model.sha256:
        path.unlink()
        report.failed.append(
            f"{model.file}: {model.address} has SHA-256 {found}, expected {model.sha256}; removed"
        )


def _download(address: str, path: Path) -> None:
    """Streams a URL to a file, atomically.

    Raises:
        OSError: the URL cannot be reached or read, or the connection breaks.
    """
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as stream, atomic_write(path) as handle:
            while chunk := stream.read(_CHUNK):
                handle.write(chunk)
            # (urllib takes the end of a connection for the end of the file.)
            if (whole := stream.headers.get("Content-Length")) and handle.tell() != int(whole):
                raise OSError(f"the connection broke after {handle.tell():,} of {int(whole):,} bytes")
    except urllib.error.URLError as error:
        raise OSError(f"cannot be downloaded ({error.reason})") from None
    except http.client.HTTPException as error:
        raise OSError(f"cannot be downloaded ({type(error).__name__} {error})") from None


def _write_manifest(folder: Path, report: Fetched) -> None:
    """Records all files of the mirror, including those added by hand."""
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name != MANIFEST_NAME
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    old = Manifest.read(folder).extra.get("revisions", {}) if (folder / MANIFEST_NAME).is_file() else {}
    Manifest(
        stage=_STAGE,
        recipe_sha256="",
        outputs=[FileRecord.of(path, folder) for path in progress(paths, desc="checksums", unit="file")],
        counts={"files": len(paths), "fetched": len(report.files), "failed": len(report.failed)},
        versions=package_versions(("emma-recipes", "huggingface_hub")),
        started=now(),
        extra={"revisions": {**old, **report.revisions}},
    ).write(folder)


def check_mirror(
    folder: Path, names: Sequence[str], languages: Collection[str] | None, *, checksums: bool = False
) -> Checked:
    """Reads everything that a run would read, and builds its prompts.

    Args:
        folder: the mirror.
        names: benchmarks.
        languages: languages in results, or the sources' codes; default all.
        checksums: also compare files with the manifest's checksums.

    Raises:
        UserError: no such folder, or a checksum check without a manifest.
    """
    mirror = Mirror(folder)
    report = Checked(folder)
    _check_harness([name for name in names if name.startswith(PREFIX)], languages, mirror, report)
    names = [name for name in names if not name.startswith(PREFIX)]
    for name in progress(list(names), desc="check", unit="benchmark"):
        benchmark = get_benchmark(name)
        wanted = [
            label for label in benchmark.languages if languages is None or _asked(benchmark, label, languages)
        ]
        present = available(mirror, benchmark.data)
        if benchmark.data.open and present and languages is None:
            wanted = [label for label in wanted if benchmark.code(label) in present]
        found = [label for label in wanted if benchmark.code(label) in present]
        report.languages[name] = len(found)
        if absent := [label for label in wanted if label not in set(found)]:
            report.missing[name] = absent
            report.faults.append(_absence(benchmark, absent, len(wanted), mirror))
        report.faults += _schema_faults(benchmark, found, mirror)
    if any(NEEDS_SPBLEU in get_benchmark(name).metrics for name in names):
        report.faults += _spbleu_faults(mirror)
    if checksums:
        report.faults += Manifest.read(folder).check_outputs(folder, contents=True)
    report.faults = list(dict.fromkeys(report.faults))
    return report


def _check_harness(
    names: Sequence[str], languages: Collection[str] | None, mirror: Mirror, report: Checked
) -> None:
    """Builds lm-eval's tasks with all their requests."""
    units = [unit for unit in harness_units(names) if languages is None or unit.language in languages]
    for unit in progress(units, desc="check", unit="language"):
        name = f"{PREFIX}{unit.family}"
        report.languages.setdefault(name, 0)
        try:
            for task in build_tasks(unit, mirror).values():
                task.build_all_requests(rank=0, world_size=1)
            report.languages[name] += 1
        except UserError as error:
            report.missing.setdefault(name, []).append(unit.language)
            report.faults.append(str(error))


def _asked(benchmark: Benchmark, label: str, languages: Collection[str]) -> bool:
    return label in languages or benchmark.code(label) in languages


def _absence(benchmark: Benchmark, absent: Sequence[str], wanted: int, mirror: Mirror) -> str:
    shown = ", ".join(absent[:_FEW]) + (", ..." if len(absent) > _FEW else "")
    fix = benchmark.data.obtain or f"emma evaluate fetch {mirror.root} --benchmarks {benchmark.name}"
    return f"{benchmark.name}: {len(absent)} of {wanted} languages are missing ({shown}); {fix}"


def _schema_faults(benchmark: Benchmark, languages: Sequence[str], mirror: Mirror) -> Iterator[str]:
    for language in languages:
        try:
            build_items(benchmark, language, mirror)
        except UserError as error:
            yield str(error)


def _spbleu_faults(mirror: Mirror) -> Iterator[str]:
    from emma.base.files import sha256_file

    model = spbleu_model()
    path = next(filter(None, map(mirror.extra, (model.file, *model.also))), None)
    if path is None:
        yield f"{mirror.root / model.file}: missing, so spBLEU cannot be computed; get it from {model.address}"
    elif (found := sha256_file(path)) != model.sha256:
        yield f"{path}: SHA-256 {found}, expected {model.sha256}: not the FLORES-200 sentencepiece model"
