"""`emma evaluate fetch` and `emma evaluate check`."""

from __future__ import annotations

import http.server
import io
import json
import shutil
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner, Result

from emma.base.files import sha256_file
from emma.base.manifest import Manifest
from emma.commands.evaluate import group
from emma.tools.evaluation.benchmarks import mirror as module
from emma.tools.evaluation.benchmarks import stores
from emma.tools.evaluation.benchmarks.definitions import SpBleu, get_source


def emma(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def hub(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub's client, answered from the sample mirror; returns what was downloaded."""
    downloaded: list[str] = []

    def files(self: Any, repository: str, **options: Any) -> list[str]:
        folder = mirror / repository
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]

    def download(
        repository: str, name: str, *, revision: str, local_dir: Path | None = None, **options: Any
    ) -> str:
        if local_dir is None:
            return str(mirror / repository / name)
        assert revision == f"commit-of-{repository}"
        downloaded.append(f"{repository}/{name}")
        target = Path(local_dir) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(mirror / repository / name, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", files)
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "dataset_info",
        lambda self, name, **options: SimpleNamespace(sha=f"commit-of-{name}"),
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    stores._listing.cache_clear()
    yield downloaded
    stores._listing.cache_clear()


@pytest.fixture
def release(mirror: Path, spm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server with the FLORES-200 archive and a sentencepiece model."""
    site = tmp_path / "site"
    site.mkdir()
    with tarfile.open(site / "flores.tar.gz", "w:gz") as tar:
        tar.add(mirror / "flores200_dataset", "./flores200_dataset")
        info = tarfile.TarInfo("../outside")
        tar.addfile(info, io.BytesIO())
    shutil.copy(spm, site / "spm")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(site))

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    source = get_source("flores200").model_copy(update={"archive": f"{address}/flores.tar.gz"})
    monkeypatch.setattr(module, "_sources", lambda names: [source])
    known = SpBleu(file="spm.model", address=f"{address}/spm", sha256=sha256_file(spm))
    monkeypatch.setattr(module, "spbleu_model", lambda: known)
    yield address
    server.shutdown()
    server.server_close()


def test_fetch_keeps_what_is_there(hub: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "mirror"
    arguments = [
        "fetch",
        folder,
        "--benchmarks",
        "belebele,xnli,nll_pbc",
        "--languages",
        "eng_Latn,swh_Latn,sw",
    ]
    result = emma(*arguments, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert sorted(hub) == [
        "facebook/belebele/README.md",
        "facebook/belebele/data/eng_Latn.jsonl",
        "facebook/belebele/data/swh_Latn.jsonl",
        "facebook/xnli/sw/validation-00000-of-00001.parquet",
    ]
    assert any("put one verse per line at pbc/<code>.txt" in line for line in report["by_hand"])
    manifest = Manifest.read(folder)
    assert manifest.extra["revisions"]["facebook/xnli"] == "commit-of-facebook/xnli"
    assert {record.path for record in manifest.outputs} == set(hub)

    hub.clear()
    (folder / "facebook" / "belebele" / "data" / "swh_Latn.jsonl").write_text("{}\n")
    assert emma(*arguments).exit_code == 0
    assert hub == ["facebook/belebele/data/swh_Latn.jsonl"]


def test_fetch_reports_what_failed_and_continues(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = huggingface_hub.HfApi.list_repo_files

    def files(self: Any, repository: str, **options: Any) -> list[str]:
        if "MassiveSumm" in repository:
            raise OSError("401 gated repository")
        if repository == "facebook/xnli":
            return ["xnli.py"]
        return original(self, repository, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", files)
    result = emma("fetch", tmp_path / "m", "--benchmarks", "massivesumm_long,xnli,xcopa", "--languages", "sw")
    assert result.exit_code == 1
    assert (
        "massivesumm_long: MaLA-LM/MassiveSumm_long: cannot be listed on the hub (401 gated" in result.output
    )
    assert "hf auth login" in result.output
    assert "facebook/xnli@main: none of its 1 files matches a known layout (xnli.py" in result.output
    assert (tmp_path / "m" / "cambridgeltl" / "xcopa" / "sw" / "test-00000-of-00001.parquet").is_file()


def test_dry_run_fetches_nothing(hub: list[str], tmp_path: Path) -> None:
    assert emma("fetch", tmp_path / "m", "--benchmarks", "xcopa", "--dry-run").exit_code == 0
    assert not hub
    assert not (tmp_path / "m").exists()


def test_archive_and_model_are_fetched_once(release: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    result = emma("fetch", folder, "--benchmarks", "flores200_eng_x", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["files"] == ["flores200_dataset", "spm.model"]
    assert (folder / "flores200_dataset" / "devtest" / "swh_Latn.devtest").is_file()
    assert not (tmp_path / "outside").exists()
    again = json.loads(emma("fetch", folder, "--benchmarks", "flores200_eng_x", "--json").stdout)
    assert (again["files"], again["kept"]) == ([], ["flores200_dataset", "spm.model"])


def test_another_model_of_spbleu_is_not_kept(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SpBleu(file="spm.model", address=f"{release}/spm", sha256="0" * 64)
    monkeypatch.setattr(module, "spbleu_model", lambda: other)
    result = emma("fetch", tmp_path / "m", "--benchmarks", "flores200_eng_x")
    assert result.exit_code == 1
    assert "expected 000000" in result.output
    assert not (tmp_path / "m" / "spm.model").exists()


def test_check_names_what_is_wrong(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(mirror, folder)
    languages = "eng_Latn,swh_Latn,hin_Deva"
    result = emma("check", folder, "--benchmarks", "sib200,sib200_emma,nll_pbc", "--languages", languages)
    assert result.exit_code == 0, result.output

    test = folder / "Davlan" / "sib200" / "data" / "swh_Latn" / "test.tsv"
    test.write_text(test.read_text(encoding="utf-8").replace("category", "topic"), encoding="utf-8")
    (folder / "pbc" / "eng_Latn.txt").unlink()
    result = emma(
        "check", folder, "--benchmarks", "sib200,nll_pbc,flores200_x_eng", "--languages", languages, "--json"
    )
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["missing"] == {"nll_pbc": ["eng_Latn"]}
    assert report["languages"]["flores200_x_eng"] == 2
    faults = "\n".join(report["faults"])
    assert "swh_Latn/test.tsv: no field category; it has index_id, topic, text" in faults
    assert "put one verse per line at pbc/<code>.txt" in faults
    assert "flores200_sacrebleu_tokenizer_spm.model: missing, so spBLEU cannot be computed" in faults


def test_list_and_prompts(mirror: Path) -> None:
    listed = json.loads(emma("list", "--json").stdout)
    assert next(row for row in listed if row["benchmark"] == "taxi1500_emma")["languages"] == 1507
    shown = json.loads(
        emma(
            "prompts", "belebele", "--languages", "swh_Latn", "--items", "2", "--mirror", mirror, "--json"
        ).stdout
    )
    assert [row["index"] for row in shown] == [0, 1]
    assert shown[0]["prompt"].startswith("P: Watu wote")
    assert shown[0]["choices"] == [" A", " B", " C", " D"]
    plain = emma("prompts", "nll_pbc", "--languages", "swh_Latn", "--mirror", mirror)
    assert plain.stdout == "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa. (0)\n"
