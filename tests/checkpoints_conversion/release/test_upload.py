"""Uploads against a local server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.hub.hub_server import TOKEN, Hub
from tests.tools.hub.uploading import held, local, upload


def test_interrupted_five_times_the_server_holds_every_byte(
    released: Path, hub: Hub, address: str, tmp_path: Path
) -> None:
    hub.drops, hub.refusals = 5, 1
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "EMMA_PROGRESS": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-P",
        "-m",
        "emma.cli",
        "release",
        "upload",
        str(released),
        "team/model",
        "--json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert hub.drops == hub.refusals == 0
    assert held(hub) == local(released)
    assert hub.repositories["team/model"].private
    assert json.loads(done.stdout)["files"] == len(local(released))
    # Nothing large or binary was received twice.
    large = [path for path in released.rglob("*") if path.suffix in (".safetensors", ".parquet")]
    assert hub.received == sum(path.stat().st_size for path in large)

    requests = len(hub.requests)
    assert upload(released)[0] == 0
    assert not any(request.startswith("PUT") for request in hub.requests[requests:])


def test_lasting_interruption_ends_with_what_to_do(
    released: Path, hub: Hub, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("Error while uploading")

    monkeypatch.setattr("emma.tools.hub.asking._WAIT_SECONDS", 0.01)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", broken)
    code, text = upload(released, "--attempts", "3")
    assert code == 2
    assert text.count("interrupted (RuntimeError), continuing") == 2
    assert "the same command continues from there" in text


def test_branch_for_a_checkpoint(released: Path, hub: Hub, address: str) -> None:
    assert upload(released, "--branch", "step40", "--public")[0] == 0
    assert held(hub, "step40") == local(released)
    assert held(hub, "main") == {}
    assert not hub.repositories["team/model"].private


def test_wrong_byte_on_the_server_is_found(released: Path, hub: Hub, address: str) -> None:
    assert upload(released)[0] == 0
    files = hub.repositories["team/model"].branches["main"]
    for name in ("README.md", next(name for name in files if name.endswith(".safetensors"))):
        before = files[name]
        files[name] = before[:-1] + bytes([before[-1] ^ 1])
        code, text = upload(released, "--check-only")
        assert code == 1
        assert f"{name} has different content there" in text
        files[name] = before
    files["model-00009-of-00009.safetensors"] = b"left over"
    assert "is there but not part of the release" in upload(released, "--check-only")[1]
    assert upload(released, "--delete-others")[0] == 0
    assert held(hub) == local(released)


def test_files_that_the_list_leaves_out_stay_here(release: Path, hub: Hub, address: str) -> None:
    (release / ".cache").mkdir()
    (release / ".cache" / "state").write_text("the Hub client's own")
    assert upload(release)[0] == 0
    assert held(hub) == local(release)


def test_dry_run_asks_the_server_nothing(released: Path, hub: Hub, address: str) -> None:
    assert json.loads(upload(released, "--dry-run", "--json")[1])["repository"] == "team/model"
    assert hub.requests == []


def test_wrong_token_and_wrong_names(released: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, text = upload(released)
    assert code == 2
    assert "set HF_TOKEN or log in" in text
    assert "hf_wrong" not in text
    assert "include the owner" in upload(released, repository="model")[1]


def test_unsound_release_stays_here(release: Path, hub: Hub, address: str) -> None:
    (release / "README.md").write_text("no card")
    code, text = upload(release)
    assert code == 1
    assert "not a valid release" in text
    assert hub.requests == []
