"""Fetches files of a data set from the Hub: resumable, each checked against the checksum that the Hub states.

`huggingface_hub` does the transfer (over Xet where the server speaks it) and handles the token. A file is moved to its place
only when it is whole and its checksum is right, so a reader never sees a part of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import append_line
from emma.base.manifest import FileRecord, Manifest, now, package_versions
from emma.tools.hub.asking import answered

__all__ = ["HubFile", "Listing", "check_space", "download", "download_files", "list_dataset", "missing"]

_PARTIAL = "partial"
_JOURNAL = "files.jsonl"


@dataclass(frozen=True)
class HubFile:
    """A file of a data set: its path there, bytes, and checksum (`sha256:...`, or `git:...` for small files, which git
    names by the SHA-1 of the blob)."""

    path: str
    bytes: int
    checksum: str


@dataclass(frozen=True)
class Listing:
    """A data set on the Hub.

    Attributes:
        repository: `owner/name`.
        commit: that its revision stands for.
        gated: whether terms must be accepted before files can be fetched.
        files: all of them.
    """

    repository: str
    commit: str
    gated: bool
    files: list[HubFile]


def list_dataset(repository: str, revision: str | None) -> Listing:
    """Lists a data set's files.

    Raises:
        UserError: there is no such data set or revision, the token cannot see it, or the network fails (UnreachableError
            where nothing answers at all).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    def ask() -> Listing:
        api = HfApi()
        info = api.dataset_info(repository, revision=revision)
        tree = api.list_repo_tree(repository, repo_type="dataset", revision=info.sha, recursive=True)
        files = [
            HubFile(
                entry.path,
                entry.size,
                f"sha256:{entry.lfs.sha256}" if entry.lfs is not None else f"git:{entry.blob_id}",
            )
            for entry in tree
            if isinstance(entry, RepoFile)
        ]
        return Listing(repository, str(info.sha), bool(getattr(info, "gated", False)), files)

    return answered(repository, ask)


class _Journal:
    """Finished files: what they were when their checksums were compared, so that they need not be read again."""

    def __init__(self, marks: Path) -> None:
        self.path = marks / _JOURNAL
        self._lock = threading.Lock()
        self._rows: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines():
                # (Of a crash, the last line may be half; its file is looked at again.)
                with contextlib.suppress(orjson.JSONDecodeError):
                    row = orjson.loads(line)
                    self._rows[row["name"]] = row

    def has(self, name: str, file: HubFile, path: Path) -> bool:
        """Whether the file on disk is the one that was checked, and still the Hub's."""
        row = self._rows.get(name)
        return row is not None and row == self._stamp(name, file, path)

    @staticmethod
    def _stamp(name: str, file: HubFile, path: Path) -> dict[str, Any]:
        try:
            status = path.stat()
        except FileNotFoundError:
            return {}
        return {"name": name, **asdict(file), "size": status.st_size, "modified": status.st_mtime_ns}

    def add(self, name: str, file: HubFile, path: Path) -> None:
        """Notes a finished file."""
        row = self._stamp(name, file, path)
        with self._lock:
            self._rows[name] = row
            append_line(self.path, orjson.dumps(row))


def missing(folder: Path, marks: Path, files: Sequence[tuple[str, HubFile]]) -> list[tuple[str, HubFile]]:
    """Those files (name below the folder, file) that are not there, or not as the Hub has them."""
    journal = _Journal(marks)
    return [(name, file) for name, file in files if not journal.has(name, file, folder / name)]


def check_space(folder: Path, size: int) -> None:
    """Raises UserError if the disk lacks `size` bytes."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < size:
        raise UserError(
            f"{folder}: fetching needs {size / 1e9:.1f} GB of disk, but {free / 1e9:.1f} GB are free; free some space, take "
            "fewer --languages, or point the source's path to another disk"
        )


def download(
    folder: Path,
    marks: Path,
    listing: Listing,
    files: Sequence[tuple[str, HubFile]],
    workers: int,
    advance: Callable[[int], object],
) -> None:
    """Fetches those files that are missing, and writes the manifest.

    Args:
        folder: where the files go.
        marks: folder of partial files, the journal of finished ones and the manifest.
        listing: the data set.
        files: name below the folder, and file.
        workers: files that are fetched at once.
        advance: called with the bytes of each finished file.

    Raises:
        UserError: the Hub refuses, or the network keeps failing.
        CheckFailedError: a file's content is not what the Hub states; it is removed.
    """
    started = now()
    download_files(folder, marks, listing, files, workers, advance)
    manifest = Manifest(
        stage="corpus/fetched",
        recipe_sha256="",
        inputs=[FileRecord(file.path, file.bytes, file.checksum) for _, file in files],
        outputs=[FileRecord(name, file.bytes, file.checksum) for name, file in files],
        counts={"files": len(files), "bytes": sum(file.bytes for _, file in files)},
        versions=package_versions(("emma-recipes", "huggingface_hub", "hf_xet")),
        started=started,
        extra={"repository": listing.repository, "commit": listing.commit},
    )
    manifest.write(marks)


def download_files(
    folder: Path,
    marks: Path,
    listing: Listing,
    files: Sequence[tuple[str, HubFile]],
    workers: int,
    advance: Callable[[int], object],
) -> None:
    """`download` for a caller that keeps a manifest of its own."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # one for all files is the caller's
    journal = _Journal(marks)
    open_files = missing(folder, marks, files)

    def one(task: tuple[str, HubFile]) -> None:
        name, file = task
        path = folder / name
        if not (
            path.is_file() and path.stat().st_size == file.bytes and _checksum(path, file) == file.checksum
        ):
            _fetch(marks, listing, file, path)
        journal.add(name, file, path)
        advance(file.bytes)

    pool = ThreadPoolExecutor(workers)
    try:
        for done in as_completed([pool.submit(one, task) for task in open_files]):
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)
    shutil.rmtree(marks / _PARTIAL, ignore_errors=True)


def _fetch(marks: Path, listing: Listing, file: HubFile, path: Path) -> None:
    # (By its path too: two files may have the same content.)
    name = hashlib.sha256(f"{file.path}\0{file.checksum}".encode()).hexdigest()
    partial = marks / _PARTIAL / name
    partial.parent.mkdir(parents=True, exist_ok=True)
    fetched = answered(listing.repository, lambda: _transfer(listing, file, partial))
    found = _checksum(fetched, file)
    if fetched.stat().st_size != file.bytes or found != file.checksum:
        fetched.unlink()
        raise CheckFailedError(
            f"{listing.repository}: {file.path} arrived with {found}, but the Hub states {file.checksum}; it was removed. Run "
            "the command again; if it stays so, the server or something on the way changes files"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    fetched.replace(path)


def _transfer(listing: Listing, file: HubFile, partial: Path) -> Path:
    """Fetches a file, from where an earlier process was interrupted; returns where it is.

    Over Xet, the client keeps the chunks that have arrived. Over HTTP, it would begin anew in each process
    (huggingface_hub 2.4), so the partial file is this module's.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    where: dict[str, Any] = {"repo_type": "dataset", "revision": listing.commit}
    headers = build_hf_headers()
    found = get_hf_file_metadata(hf_hub_url(listing.repository, file.path, **where), token=None)
    xet = importlib.util.find_spec("hf_xet") is not None and not constants.HF_HUB_DISABLE_XET
    if xet and found.xet_file_data is not None:
        return Path(
            hf_hub_download(listing.repository, file.path, local_dir=partial.with_suffix(".xet"), **where)
        )
    if urlsplit(found.location).netloc != urlsplit(hf_hub_url(listing.repository, file.path)).netloc:
        headers.pop("authorization", None)  # a storage's signed address; the token is the Hub's alone
    if partial.exists() and partial.stat().st_size > file.bytes:
        partial.unlink()
    with partial.open("ab") as handle:
        http_get(found.location, handle, resume_size=handle.tell(), headers=headers, expected_size=file.bytes)
    return partial


def _checksum(path: Path, file: HubFile) -> str:
    kind = file.checksum.partition(":")[0]
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    digest = hashlib.sha256() if kind == "sha256" else git
    with path.open("rb") as handle:
        while chunk := handle.read(8 << 20):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"
