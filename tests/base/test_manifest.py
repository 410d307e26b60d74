"""A manifest tells whether its outputs are still what was written."""

from __future__ import annotations

from pathlib import Path

from emma.base.files import sha256_file
from emma.base.manifest import FileRecord, Manifest


def test_files_that_changed_are_named(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"a" * 100)
    Manifest("stage", "0" * 64, outputs=[FileRecord.of(part, tmp_path)]).write(tmp_path)
    manifest = Manifest.read(tmp_path)
    assert manifest.check_outputs(tmp_path, contents=True) == []
    part.write_bytes(b"a" * 99)
    assert "99 bytes" in manifest.check_outputs(tmp_path)[0]
    part.write_bytes(b"a" * 101)
    assert "101 bytes" in manifest.check_outputs(tmp_path)[0]
    part.write_bytes(b"a" * 99 + b"b")
    assert manifest.check_outputs(tmp_path) == []
    assert "SHA-256" in manifest.check_outputs(tmp_path, contents=True)[0]
    part.unlink()
    assert "missing" in manifest.check_outputs(tmp_path)[0]


def test_a_hash_covers_the_end_of_a_large_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(1 << 20) + b"9")
    other.write_bytes(bytes(1 << 20) + b"x")
    assert sha256_file(one) != sha256_file(other)
