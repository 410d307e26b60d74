"""Finds every way in which a release folder can go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, write_json
from emma.checkpoints_conversion.release.verify import generate_faults, release_faults
from emma.commands.release import group
from emma.tools.hub.checksums import write_checksums
from emma.tools.hub.kinds import release_kind


def test_sound_release(released: Path) -> None:
    assert release_faults(released) == []
    assert generate_faults(released) == []
    result = CliRunner().invoke(group, ["verify", str(released), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == {"folder": str(released), "passed": True, "faults": []}


def _edit(path: Path, **changes: object) -> None:
    write_json(path, {**read_json(path), **changes})


def _flip(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_flip, "about other weights"),
        (lambda folder: sorted(folder.glob("*.safetensors"))[1].unlink(), "are missing"),
        (lambda folder: _edit(folder / "config.json", num_hidden_layers=3), "do not match config.json"),
        (lambda folder: _edit(folder / "generation_config.json", eos_token_id=0), "eos_token"),
        (lambda folder: (folder / "generation_config.json").unlink(), "generation_config.json: missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: missing"),
        (lambda folder: (folder / "README.md").unlink(), "README.md: missing"),
        (lambda folder: _replace(folder / "README.md", "license: apache-2.0\n", ""), "`license` is missing"),
        (
            lambda folder: _replace(folder / "README.md", "- de\n", "- deu_Latn\n"),
            "'deu_Latn', which is not an ISO 639",
        ),
        (lambda folder: _replace(folder / "README.md", "license: apache-2.0", "license: llama3"), "requires"),
        (
            lambda folder: _replace(
                folder / "README.md", "pipeline_tag: text-generation", "pipeline_tag: [a: {"
            ),
            "its metadata is invalid",
        ),
        (lambda folder: _edit(folder / "parity.json", passed=False, faults=["x"]), "parity failed"),
        (lambda folder: (folder / "parity.json").unlink(), "no such file"),
    ],
)
def test_faults_are_found_even_under_fresh_checksums(
    release: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(release)
    assert any("SHA256SUMS" in fault for fault in release_faults(release))
    write_checksums(release)
    assert any(message in fault for fault in release_faults(release)), release_faults(release)
    with pytest.raises(CheckFailedError, match="is not a valid release"):
        CliRunner().invoke(group, ["verify", str(release)], catch_exceptions=False)


def test_every_changed_missing_or_added_file_is_named(release: Path) -> None:
    (release / "recipe.yaml").write_text("other")
    (release / "parity.html").unlink()
    (release / "extra.bin").write_bytes(b"x")
    (release / ".cache").mkdir()
    (release / ".cache" / "upload").write_bytes(b"the Hub client's own")
    faults = release_faults(release)
    assert len(faults) == 3
    for name in ("recipe.yaml", "parity.html", "extra.bin"):
        assert any(name in fault for fault in faults)


def test_no_release_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        release_kind(tmp_path / "none")
    assert any("not a release folder" in fault for fault in release_faults(tmp_path))
