"""Uploads a release folder to the Hub, resumes after interruptions, and verifies what the server holds.

`huggingface_hub`'s `upload_folder` does the transfer, also for large folders: it skips what the server
already has and, where the server supports it, commits many or large files in batches. It alone handles the
token, from `HF_TOKEN` or `hf auth login`; this module never reads, prints, or stores it.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emma.base.errors import CheckFailedError, UserError
from emma.tools.hub.checksums import CHECKSUMS_NAME, SIGNATURE_NAME, listed_files
from emma.tools.hub.kinds import Kind, release_kind

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Upload", "plan_upload", "server_faults", "upload_release"]

_MAIN = "main"
# Network faults. Faults of the request itself (wrong token, wrong name) don't improve by waiting.
_WAIT_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 60.0


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
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    lost_connection = _lost_connection()
    api = HfApi()
    for attempt in range(1, attempts + 1):
        try:
            _transfer(api, plan, delete_others)
            break
        except HfHubHTTPError as error:
            if error.response.status_code < 500 and error.response.status_code not in (408, 429):
                raise _refusal(plan, error) from None
            _wait(plan, attempt, attempts, error)
        except ValueError as error:  # how the client reports a card that the Hub refuses
            raise UserError(f"{plan.repository}: {error}") from None
        # The client wraps whatever interrupted a transfer in a RuntimeError.
        except (lost_connection, OSError, RuntimeError) as error:
            _wait(plan, attempt, attempts, error)
    if faults := server_faults(plan, delete_others=delete_others):
        raise CheckFailedError(f"{plan.repository} does not hold the release: " + "; ".join(faults))


def _lost_connection() -> type[Exception]:
    """What the client's HTTP library raises when a connection breaks (the library has two names)."""
    from huggingface_hub.utils import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    error: type[Exception] = library.TransportError
    return error


def _transfer(api: HfApi, plan: Upload, delete_others: bool) -> None:
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


def _refusal(plan: Upload, error: Any) -> UserError:
    code = error.response.status_code
    reasons = {
        401: "it does not recognise you; set HF_TOKEN or log in with `hf auth login`",
        403: "your token lacks write access; create one that has it, or name another owner",
        404: "the owner or repository does not exist, or your token cannot access it",
    }
    return UserError(
        f"{plan.repository}: the Hub answered {code}: {reasons.get(code, error.server_message or error)}"
    )


def _wait(plan: Upload, attempt: int, attempts: int, error: Exception) -> None:
    if attempt == attempts:
        raise UserError(
            f"{plan.repository}: interrupted {attempts} times, most recently by: {error}. What has arrived is kept; the "
            "same command continues from there"
        ) from None
    click.echo(f"interrupted ({type(error).__name__}), continuing ({attempt} of {attempts})", err=True)
    time.sleep(min(_LONGEST_WAIT_SECONDS, _WAIT_SECONDS * 2 ** (attempt - 1)))


def server_faults(plan: Upload, *, delete_others: bool = False) -> list[str]:
    """Differences between the folder and what the server reports, by hash.

    Files that the release does not have are faults if they could be taken for its weights or text.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(plan.repository, repo_type=plan.kind, recursive=True, revision=plan.branch)
    held = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
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
