"""`emma evaluate fetch` and `emma evaluate check`."""

from __future__ import annotations

import http.server
import io
import json
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from emma.base.files import sha256_file
from emma.base.manifest import Manifest
from emma.commands.evaluate import group
from emma.tools.evaluation.benchmarks import mirror as module
from emma.tools.evaluation.benchmarks import stores
from emma.tools.evaluation.benchmarks.definitions import SpBleu, get_source
from tests.tools.hub.hub_server import Hub, Repository
from tests.tools.hub.uploading import point


def emma(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def hub(mirror: Path) -> Hub:
    """Holds the sample mirror's repositories."""
    hub = Hub()
    for path in filter(Path.is_file, mirror.rglob("*")):
        owner, *rest = path.relative_to(mirror).parts
        if len(rest) > 1:
            repository = hub.repositories.setdefault(
                f"{owner}/{rest[0]}", Repository(private=False, kind="dataset", commits=7)
            )
            repository.branches["main"]["/".join(rest[1:])] = path.read_bytes()
            repository.branches["refs/convert/parquet"] = repository.branches["main"]
    return hub


@pytest.fixture
def address(address: str) -> Iterator[str]:
    """As uploads' server; what it lists is asked anew."""
    stores._listed.cache_clear()
    yield address
    stores._listed.cache_clear()


def downloads(hub: Hub) -> list[str]:
    """Files that were asked for since the last call."""
    found = [name for name in hub.requests if name.startswith("GET /datasets/")]
    hub.requests.clear()
    return sorted(re.sub("^GET /datasets/([^/]+/[^/]+)/resolve/[^/]+/", r"\1/", name) for name in found)


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

        def copyfile(self, source: Any, outputfile: Any) -> None:
            if (site / "half").is_file() and self.path.endswith(".gz"):
                source = io.BytesIO(source.read()[:-1000])
            super().copyfile(source, outputfile)

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


def test_fetch_keeps_what_is_there(hub: Hub, address: str, tmp_path: Path) -> None:
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
    fetched = [
        "facebook/belebele/README.md",
        "facebook/belebele/data/eng_Latn.jsonl",
        "facebook/belebele/data/swh_Latn.jsonl",
        "facebook/xnli/sw/validation-00000-of-00001.parquet",
    ]
    assert sorted(report["files"]) == fetched
    assert any("put one verse per line at pbc/<code>.txt" in line for line in report["by_hand"])
    manifest = Manifest.read(folder)
    assert manifest.extra["revisions"]["facebook/xnli"] == hub.repositories["facebook/xnli"].commit("main")
    assert [record.path for record in manifest.outputs] == fetched
    assert Manifest.read(folder).check_outputs(folder, contents=True) == []

    # One that was changed here, and one that was changed there.
    (folder / "facebook" / "belebele" / "data" / "swh_Latn.jsonl").write_text("{}\n")
    stores._listed.cache_clear()
    hub.repositories["facebook/belebele"].branches["main"]["data/eng_Latn.jsonl"] += b"\n"
    downloads(hub)
    assert emma(*arguments).exit_code == 0
    assert downloads(hub) == fetched[1:3]
    for name in fetched[1:3]:
        held = hub.repositories["facebook/belebele"].branches["main"][name.removeprefix("facebook/belebele/")]
        assert (folder / name).read_bytes() == held


def test_fetch_reports_what_failed_and_continues(hub: Hub, address: str, tmp_path: Path) -> None:
    hub.repositories["MaLA-LM/MassiveSumm_long"].gated = True
    hub.repositories["facebook/xnli"].branches["main"] = {"xnli.py": b""}
    hub.drops = 1
    result = emma("fetch", tmp_path / "m", "--benchmarks", "massivesumm_long,xnli,xcopa", "--languages", "sw")
    assert result.exit_code == 1
    assert "massivesumm_long: MaLA-LM/MassiveSumm_long: the Hub answered 403" in result.output
    assert "hf auth login" in result.output
    assert "facebook/xnli@main: none of its 1 files matches a known layout (xnli.py" in result.output
    assert (tmp_path / "m" / "cambridgeltl" / "xcopa" / "sw" / "test-00000-of-00001.parquet").is_file()


def test_dry_run_fetches_nothing(hub: Hub, address: str, tmp_path: Path) -> None:
    assert emma("fetch", tmp_path / "m", "--benchmarks", "xcopa", "--dry-run").exit_code == 0
    assert not downloads(hub)
    assert not (tmp_path / "m").exists()


def test_without_a_network_one_message_and_nothing_written(
    hub: Hub, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emma.tools.hub.asking._WAIT_SECONDS", 0.0)
    point(monkeypatch, "http://127.0.0.1:9")
    result = emma("fetch", tmp_path / "m", "--benchmarks", "xcopa,xnli,belebele,flores200_eng_x")
    assert result.exit_code == 1
    assert result.output.count("the Hub cannot be reached") == 1
    assert "has not been tried" in result.output
    assert len(result.output.splitlines()) == 2
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


@pytest.mark.parametrize("broken", ["half sent", "half archive"])
def test_a_part_of_an_archive_leaves_nothing(release: str, tmp_path: Path, broken: str) -> None:
    archive = tmp_path / "site" / "flores.tar.gz"
    whole = archive.read_bytes()
    if broken == "half sent":
        (tmp_path / "site" / "half").touch()  # the server then stops in the middle
    else:
        archive.write_bytes(whole[: len(whole) // 2])
    folder = tmp_path / "m"
    folder.mkdir()
    result = emma("fetch", folder, "--benchmarks", "flores200_eng_x")
    assert result.exit_code == 1
    assert "the connection broke after" in result.output or broken == "half archive"
    assert f"flores200: {release}/flores.tar.gz" in result.output
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "spm.model"]
    archive.write_bytes(whole)
    (tmp_path / "site" / "half").unlink(missing_ok=True)
    assert emma("fetch", folder, "--benchmarks", "flores200_eng_x").exit_code == 0
    assert (folder / "flores200_dataset" / "devtest" / "swh_Latn.devtest").is_file()


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
