"""Files on object stores (`s3://`, `gs://`, `hf://`, any address that fsspec knows), for reading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from emma.base.errors import UserError

__all__ = ["is_remote", "open_remote", "remote_files", "remote_identity"]

_IDENTITIES = (
    "sha256",
    "ETag",
    "etag",
    "blob_id",
    "md5Hash",
    "last_modified",
    "LastModified",
    "mtime",
    "created",
)
"""What stores say of a file's version, the best first."""


_CLIENTS = {
    "aiohttp",
    "azure",
    "botocore",
    "gcsfs",
    "google",
    "httpx",
    "httpx2",
    "huggingface_hub",
    "requests",
    "urllib3",
}
"""Libraries that stores are spoken to through; not all their errors are OSErrors."""


def is_remote(path: str) -> bool:
    """Whether a path is an address of an object store."""
    return "://" in path


@contextlib.contextmanager
def _store(path: str) -> Iterator[tuple[Any, str]]:
    """The store of an address, and the path in it.

    Raises:
        UserError: nothing installed knows the address, or the store refuses.
    """
    import fsspec

    try:
        yield fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise UserError(f"{path}: {error}; install that package beside this one") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        if (
            not isinstance(error, OSError | ValueError)
            and type(error).__module__.split(".")[0] not in _CLIENTS
        ):
            raise
        raise UserError(f"{path}: the store cannot be read ({str(error) or type(error).__name__})") from None


@contextlib.contextmanager
def open_remote(path: str) -> Iterator[BinaryIO]:
    """Opens a file for reading, with `seek`.

    Raises:
        UserError: no such file, or the store refuses.
    """
    with _store(path) as (store, inner), store.open(inner, "rb") as handle:
        yield cast(BinaryIO, handle)


def remote_files(base: str) -> list[str]:
    """Addresses of all files below an address (or of the file there itself), sorted; hidden ones are left out.

    Raises:
        UserError: the store cannot be read.
    """
    with _store(base) as (store, inner):
        if store.isfile(inner):
            return [base]
        root = inner.rstrip("/")
        found = store.find(root) if store.exists(root) else []
        below = [path.removeprefix(root).lstrip("/") for path in found]
    return sorted(
        f"{base.rstrip('/')}/{name}"
        for name in below
        if not any(part.startswith(".") for part in name.split("/"))
    )


def remote_identity(path: str) -> tuple[int, str]:
    """Bytes of a file, and what the store says of its version (`etag:...`, `sha256:...`), without reading it.

    Raises:
        UserError: no such file, or the store refuses.
    """
    with _store(path) as (store, inner):
        info = store.info(inner)
    lfs = info.get("lfs")
    if lfs and (sha256 := lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256):
        return int(info["size"]), f"sha256:{sha256}"
    name = next((name for name in _IDENTITIES if info.get(name)), None)
    version = "size" if name is None else f"{name.lower()}:{str(info[name]).strip(chr(34))}"
    return int(info["size"]), version
