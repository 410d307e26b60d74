"""Releases of merges: the licences of all parents, the card, and its verification."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.checkpoints_conversion.merging.again import prove
from emma.checkpoints_conversion.merging.write import merge
from emma.checkpoints_conversion.release.licenses import fitting_name, hub_identifier, licenses_of
from emma.checkpoints_conversion.release.merged import plan_merge
from emma.checkpoints_conversion.release.verify import name_fault, release_faults
from emma.tools.hub.cards import read_card
from tests.checkpoints_conversion.merging.kin import make_kin, recipe
from tests.command_line import emma


@pytest.fixture(scope="module")
def kin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kin(tmp_path_factory.mktemp("kin"), bos_token_id=497, eos_token_id=498)


def _merged(kin: Path, out: Path, *licenses: str | None) -> Path:
    """A proven merge of models with these licences."""
    models: list[dict[str, Any]] = [
        {"path": str(kin / name), "huggingface": f"team/{name}", "license": licence}
        for name, licence in zip(("one", "two"), licenses[1:], strict=True)
    ]
    base = {"path": str(kin / "base"), "huggingface": "meta/base", "license": licenses[0]}
    merge(recipe(kin, "task_vector", name="swahili", models=models, base=base), out)
    prove(out, {"eng": ["All human beings are born free."]}).write(out)
    return out


def _llama_files(folder: Path) -> Path:
    """Files with the names, but not the words, of a licence; returns the folder."""
    folder.mkdir()
    for name in ("LICENSE", "USE_POLICY.md"):
        (folder / name).write_text("words")
    return folder


def test_a_permissive_merge(kin: Path, tmp_path: Path) -> None:
    out = _merged(kin, tmp_path / "out", "apache-2.0", "mit", "apache-2.0")
    answer = emma("release", "model", str(out), str(tmp_path / "release"))
    assert answer.code == 0, answer.err
    data, text = read_card(tmp_path / "release")
    assert data["base_model"] == ["meta/base", "team/one", "team/two"]
    assert data["base_model_relation"] == "merge"
    assert "merge" in data["tags"]
    assert "| [team/two](https://huggingface.co/team/two) | model | 1 |" in text
    assert release_faults(tmp_path / "release") == []
    assert str(kin) not in (tmp_path / "release/merge.json").read_text() + text
    # What the card says is what the record gives.
    card = tmp_path / "release/README.md"
    card.write_text(card.read_text().replace("without training", "with care"))
    assert any("with care" in fault for fault in release_faults(tmp_path / "release", read_weights=False))


def test_the_strictest_licence_rules(kin: Path, tmp_path: Path) -> None:
    out = _merged(kin, tmp_path / "out", "llama3.1", "apache-2.0", "llama3.1")
    files = _llama_files(tmp_path / "files")
    plan = plan_merge(out, license_from=files)
    assert plan.title == "Llama swahili"
    assert plan.as_dict()["license"] == "llama3.1"
    with pytest.raises(UserError, match="begins with “Llama”"):
        plan_merge(out, name="swahili")
    answer = emma("release", "model", str(out), str(tmp_path / "release"))
    assert answer.code == 2 and "requires a copy of the base model's LICENSE" in answer.err
    answer = emma("release", "model", str(out), str(tmp_path / "release"), "--license-from", str(files))
    assert answer.code == 1 and "its text (1 word) is not the Llama 3.1" in answer.err
    assert not (tmp_path / "release").exists()


def test_several_licences_bind_at_once(kin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The words of the licences are not part of this project; all else is checked.
    monkeypatch.setattr("emma.checkpoints_conversion.release.licenses._texts", dict)
    out = _merged(kin, tmp_path / "out", "llama3.1", "llama3.3", "mit")
    files, release = _llama_files(tmp_path / "files"), tmp_path / "release"
    answer = emma("release", "model", str(out), str(release), "--license-from", str(files), "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["license"] == "other"
    data, text = read_card(release)
    assert data["license_name"] == "llama3.1-and-llama3.3-and-mit"
    assert text.startswith("# Llama swahili") or "\n# Llama swahili\n" in text
    notice = (release / "NOTICE").read_text()
    assert "Llama 3.1 is licensed" in notice and "Llama 3.3 is licensed" in notice
    assert release_faults(release) == []
    assert "requires a name that begins with “Llama”" in (name_fault(release, "team/swahili") or "")
    assert name_fault(release, "team/Llama-swahili") is None
    for path in (release / "licenses/llama3.3/USE_POLICY.md", release / "NOTICE"):
        content = path.read_bytes()
        path.unlink()
        assert release_faults(release, read_weights=False)
        path.write_bytes(content)
    assert release_faults(release) == []


def test_names_and_identifiers() -> None:
    both = licenses_of(["llama3.1", "apache-2.0", "llama3"])
    assert fitting_name("x", *both) == "Llama 3 x"
    assert fitting_name("Llama 3 x", *both) == "Llama 3 x"
    assert fitting_name("Llama-x", *both) == "Llama 3 Llama-x"
    assert hub_identifier(licenses_of(["apache-2.0", "llama3.1"])) == "llama3.1"
    assert hub_identifier(licenses_of(["cc-by-nc-4.0", "mit"])) == "cc-by-nc-4.0"
    assert hub_identifier(licenses_of(["mit", "mit"])) == "mit"
    assert hub_identifier(licenses_of(["mit", "apache-2.0"])) == "other"


def test_what_is_not_known_or_proven_is_not_released(kin: Path, tmp_path: Path) -> None:
    out = _merged(kin, tmp_path / "out", "mit", None, "mit")
    with pytest.raises(UserError, match="nothing says under which licence one may be used"):
        plan_merge(out)
    (out / "parity.json").unlink()
    with pytest.raises(UserError, match="emma convert verify"):
        plan_merge(out)
    answer = emma("release", "model", str(out), str(tmp_path / "release"), "--step", "3")
    assert answer.code == 2 and "has no step 3" in answer.err


def test_a_merge_of_a_merge_is_bound_by_all_licences(kin: Path, tmp_path: Path) -> None:
    root = tmp_path / "kin"
    shutil.copytree(kin, root)
    _merged(kin, tmp_path / "first", "llama3.1", "mit", "mit")
    models = [{"path": str(tmp_path / "first")}, {"path": str(root / "two"), "license": "apache-2.0"}]
    manifest = merge(recipe(root, "linear", models=models), tmp_path / "second")
    assert set(manifest.extra["licenses"]) == {"llama3.1", "mit", "apache-2.0"}
    assert read_json(tmp_path / "second/manifest.json")["extra"]["licenses"] == manifest.extra["licenses"]
