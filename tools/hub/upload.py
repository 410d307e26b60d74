"""Uploads a release folder to the Hub, resumes after interruptions, and verifies what the server holds.

`huggingface_hub`'s `upload_folder` does the transfer, also for large folders: it skips what the server
already has and, where the server supports it, commits many or large files in batches. It alone handles the
token, from `HF_TOKEN` or `hf auth login`; this module never reads, prints, or stores it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from emma.base.errors import CheckFailedError, UserError
from emma.tools.hub.asking import answered
from emma.tools.hub.checksums import CHECKSUMS_NAME, SIGNATURE_NAME, listed_files
from emma.tools.hub.kinds import Kind, release_kind

__all__ = ["Upload", "plan_upload", "server_faults", "upload_release"]

_MAIN = "main"
_WRITING = {
    401: "it does not recognise you; set HF_TOKEN or log in with `hf auth login`",
    403: "your token lacks write access; create one that has it, or name another owner",
    404: "the owner or repository does not exist, or your token cannot access it",
}


@dataclass(frozen=True)
class Upload:
    """What goes where: `kind` is that of the repository, `files` are names relative to `folder`, `bytes` is
    their total size."""

    folder: Path
    kind: Kind
    repository: str
    branch: str
    private: bool
    files: tuple[str, ...]
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values."""
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "repository": self.repository,
            "branch": self.branch,
            "private": self.private,
            "files": len(self.files),
            "bytes": self.bytes,
        }


def plan_upload(
    folder: Path,
    repository: str,
    branch: str | None = None,
    *,
    verify: Callable[[Path], list[str]],
    private: bool = True,
) -> Upload:
    """Checks the folder and the names.

    Args:
        folder: the release.
        repository: `owner/name`.
        branch: branch to upload to; by default the main one.
        verify: returns the faults of a release folder of this kind.
        private: whether a newly created repository is private.

    Raises:
        UserError: the repository's name is not valid on the Hub.
        CheckFailedError: the folder is not a valid release.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{repository}: {error}") from None
    if repository.count("/") != 1:
        raise UserError(f"{repository}: include the owner, as in my-team/{repository}")
    if faults := verify(folder):
        raise CheckFailedError(f"{folder} is not a valid release: " + "; ".join(faults))
    signature = [SIGNATURE_NAME] if (folder / SIGNATURE_NAME).is_file() else []
    files = (*listed_files(folder), CHECKSUMS_NAME, *signature)
    size = sum((folder / name).stat().st_size for name in files)
    return Upload(folder, release_kind(folder), repository, branch or _MAIN, private, files, size)


def upload_release(plan: Upload, *, attempts: int = 10, delete_others: bool = False) -> None:
    """Uploads, then compares the server's hashes with the folder's.

    Creates the repository if it does not exist (private unless the plan says otherwise; an existing
    repository keeps its visibility), and the branch likewise.

    Args:
        plan: from `plan_upload`.
        attempts: how often an interrupted transfer is resumed.
        delete_others: delete files on the branch that the release does not have.

    Raises:
        UserError: the Hub refuses (no token, no permission, no such owner), or the network keeps failing.
        CheckFailedError: the server holds different content afterwards.
    """
    answered(
        plan.repository,
        lambda: _transfer(plan, delete_others),
        _WRITING,
        attempts=attempts,
        again=lambda attempt, error: click.echo(
            f"interrupted ({type(error).__name__}), continuing ({attempt} of {attempts})", err=True
        ),
    )
    if faults := server_faults(plan, delete_others=delete_others):
        raise CheckFailedError(f"{plan.repository} does not hold the release: " + "; ".join(faults))


def _transfer(plan: Upload, delete_others: bool) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(plan.repository, repo_type=plan.kind, private=plan.private, exist_ok=True)
    if plan.branch != _MAIN:
        api.create_branch(plan.repository, repo_type=plan.kind, branch=plan.branch, exist_ok=True)
    api.upload_folder(
        repo_id=plan.repository,
        repo_type=plan.kind,
        folder_path=plan.folder,
        revision=plan.branch,
        commit_message=f"Release {plan.folder.resolve().name}",
        # Patterns for what `listed_files` leaves out: with thousands of names as patterns, each would be
        # tried on each file.
        ignore_patterns=[".*"],
        delete_patterns="*" if delete_others else None,
    )


def server_faults(plan: Upload, *, delete_others: bool = False) -> list[str]:
    """Differences between the folder and what the server reports, by hash.

    Files that the release does not have are faults if they could be taken for its weights or text.

    Raises:
        UserError: the Hub refuses, or the network keeps failing.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    def ask() -> dict[str, RepoFile]:
        tree = HfApi().list_repo_tree(
            plan.repository, repo_type=plan.kind, recursive=True, revision=plan.branch
        )
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    held = answered(plan.repository, ask, _WRITING)
    faults = []
    for name in plan.files:
        if name not in held:
            faults.append(f"{name} is missing there")
        elif (fault := _difference(plan.folder / name, held[name])) is not None:
            faults.append(f"{name} {fault}")
    others = sorted(set(held) - set(plan.files) - {".gitattributes"})
    faults += [
        f"{name} is there but not part of the release; delete it with --delete-others"
        for name in others
        if delete_others or name.endswith((".safetensors", ".index.json", ".bin", ".parquet"))
    ]
    return faults


def _difference(path: Path, held: Any) -> str | None:
    """Compares by SHA-256 for large files, by git's SHA-1 of the blob for others."""
    if held.size != path.stat().st_size:
        return f"has {held.size} bytes there but {path.stat().st_size} here"
    if held.lfs is not None:
        same = held.lfs.sha256 == _digest(hashlib.sha256(), path)
    else:
        same = held.blob_id == _digest(hashlib.sha1(b"blob %d\0" % held.size, usedforsecurity=False), path)
    return None if same else "has different content there"


def _digest(digest: Any, path: Path) -> str:
    for chunk in _chunks(path):
        digest.update(chunk)
    result: str = digest.hexdigest()
    return result


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as handle:
        while chunk := handle.read(8 << 20):
            yield chunk
