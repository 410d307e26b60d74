"""Fetching sources from a running server in place of the Hub, by the command in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from emma.base.errors import UserError
from emma.base.manifest import Manifest
from emma.recipes.load import load_recipe
from emma.tools.corpus.build import build_corpus, build_of
from emma.tools.hub.download import check_space
from tests.tools.hub.hub_server import TOKEN, Hub, Repository, serve

RECIPE = """
extends: demo
data:
  base: demo_monolingual
  name: fetched
  corpus:
    sources:
      mono:
        kind: monolingual
        path: raw/mono/{language}/*.jsonl
        license: odc-by
        url: https://huggingface.co/datasets/team/mono
      pairs:
        kind: parallel
        path: raw/pairs/{src}-{tgt}/train.jsonl
        license: odc-by
        url: https://huggingface.co/datasets/team/pairs/tree/v2/data
      elsewhere:
        kind: monolingual
        path: raw/elsewhere.jsonl
        language: eng
        license: CC0-1.0
        url: https://example.org/elsewhere
paths: {corpus: corpus}
"""


def lines(language: str, count: int = 3) -> bytes:
    return b"".join(orjson.dumps({"text": f"{language} text number {n} " * 20}) + b"\n" for n in range(count))


@pytest.fixture
def hub() -> Hub:
    hub = Hub()
    mono = Repository(private=False, kind="dataset", commits=7)
    for language in ("eng_Latn", "deu_Latn", "yor_Latn"):
        mono.branches["main"][f"{language}/train.jsonl"] = lines(language)
    mono.branches["main"]["eng_Latn/large.jsonl"] = lines("eng", 2000)
    mono.branches["main"]["README.md"] = b"# card"
    mono.large = {"eng_Latn/large.jsonl"}
    pairs = Repository(private=False, kind="dataset", commits=3)
    pairs.branches["v2"] = {
        f"data/{one}-{other}/train.jsonl": orjson.dumps({"src_text": "a b c", "tgt_text": "d e f"})
        for one, other in (("eng_Latn", "deu_Latn"), ("eng_Latn", "yor_Latn"), ("deu_Latn", "fra_Latn"))
    }
    hub.repositories = {"team/mono": mono, "team/pairs": pairs}
    return hub


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables of a process that knows no other hub than the server."""
    server, url = serve(hub)
    (tmp_path / "run.yaml").write_text(RECIPE)
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "EMMA_PROGRESS": "0"}
    yield {**os.environ, **home, "HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1"}
    server.shutdown()
    server.server_close()


def command(*options: str) -> list[str]:
    return [sys.executable, "-P", "-m", "emma.cli", "corpus", "fetch", "run.yaml", *options]


@pytest.fixture
def fetch(tmp_path: Path, environment: dict[str, str]) -> Run:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*options), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


def test_fetches_into_the_layout_that_the_recipe_reads(hub: Hub, fetch: Run, tmp_path: Path) -> None:
    planned = fetch("--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert not (tmp_path / "raw").exists()
    assert [row["missing_files"] for row in plan["sources"]] == [4, 3]
    assert plan["not_on_the_hub"][-1] == {
        "source": "elsewhere", "url": "https://example.org/elsewhere", "path": "raw/elsewhere.jsonl",
    }  # fmt: skip
    hub.drops = 1  # the client continues where the connection broke
    done = fetch("--json")
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    main = hub.repositories["team/mono"].branches["main"]
    for name, content in main.items():
        path = tmp_path / "raw/mono" / name
        assert path.is_file() == name.endswith(".jsonl"), name
        assert not name.endswith(".jsonl") or path.read_bytes() == content
    assert (tmp_path / "raw/pairs/deu_Latn-fra_Latn/train.jsonl").is_file()
    manifest = Manifest.read(tmp_path / "raw/mono/.fetched/mono")
    assert manifest.extra == {"repository": "team/mono", "commit": f"{7:040x}"}
    assert manifest.check_outputs(tmp_path / "raw/mono") == []
    assert not list((tmp_path / "raw").rglob("*.incomplete"))
    # A second call asks what is there, and fetches nothing.
    sent = hub.sent
    assert fetch().returncode == 0
    assert hub.sent == sent
    # One that is changed here, and one that is changed there, are fetched again.
    (tmp_path / "raw/mono/yor_Latn/train.jsonl").write_bytes(b"{}")
    main["deu_Latn/train.jsonl"] = lines("new")
    assert fetch().returncode == 0
    assert (tmp_path / "raw/mono/yor_Latn/train.jsonl").read_bytes() == main["yor_Latn/train.jsonl"]
    assert (tmp_path / "raw/mono/deu_Latn/train.jsonl").read_bytes() == lines("new")
    assert hub.sent == sent + len(main["yor_Latn/train.jsonl"]) + len(lines("new"))


def test_what_is_fetched_can_be_built(fetch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch("--sources", "mono", "--languages", "eng_Latn,yor_Latn").returncode == 0
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("run.yaml")
    build = build_of(recipe, 1)
    corpus = build.corpus.model_copy(update={"sources": {"mono": build.corpus.sources["mono"]}})
    build_corpus(type(build)(corpus, build.data, build.root, build.recipe_sha256), "integrated")
    assert sorted(path.name for path in (tmp_path / "corpus/integrated/monolingual").iterdir()) == [
        "eng_Latn",
        "yor_Latn",
    ]


def test_languages_and_pairs(fetch: Run, tmp_path: Path) -> None:
    answer = fetch("--languages", "eng_Latn,yor_Latn")
    assert answer.returncode == 0, answer.stderr
    found = sorted(str(path.relative_to(tmp_path / "raw")) for path in (tmp_path / "raw").rglob("*.jsonl")
                   if ".fetched" not in path.parts)  # fmt: skip
    assert found == [
        "mono/eng_Latn/large.jsonl", "mono/eng_Latn/train.jsonl", "mono/yor_Latn/train.jsonl",
        "pairs/eng_Latn-yor_Latn/train.jsonl",
    ]  # fmt: skip
    wrong = fetch("--languages", "eng_Latn,english")
    assert wrong.returncode == 2
    assert "no file is in `english`" in wrong.stderr
    assert "`nowhere` is not a source" in fetch("--sources", "nowhere").stderr


def test_killed_and_resumed(hub: Hub, tmp_path: Path, environment: dict[str, str]) -> None:
    # The client writes ten megabytes at a time.
    size = len(
        hub.repositories["team/mono"].branches["main"].setdefault("eng_Latn/huge.jsonl", lines("eng", 70_000))
    )
    assert size > 25_000_000
    hub.repositories["team/mono"].large.add("eng_Latn/huge.jsonl")
    hub.rate = 15_000_000
    options = ("--sources", "mono", "--languages", "eng_Latn")
    process = subprocess.Popen(command(*options), cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while hub.sent < 0.7 * size and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    large = tmp_path / "raw/mono/eng_Latn/huge.jsonl"
    assert not large.exists()  # a reader never sees a part
    hub.rate, before = 0, hub.sent
    done = subprocess.run(command(*options), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert large.stat().st_size == size
    assert hub.sent - before < 0.8 * size


def test_a_wrong_checksum_is_never_left_in_place(hub: Hub, fetch: Run, tmp_path: Path) -> None:
    for name in ("eng_Latn/large.jsonl", "deu_Latn/train.jsonl"):  # by SHA-256, and by git's SHA-1
        hub.corrupt = {name}
        shutil.rmtree(tmp_path / "raw", ignore_errors=True)
        answer = fetch("--sources", "mono")
        assert answer.returncode == 1
        assert f"{name} arrived with" in answer.stderr
        assert not (tmp_path / "raw/mono" / name).exists()
    hub.corrupt = set()
    assert fetch("--sources", "mono").returncode == 0


def test_terms_and_absence_are_named_and_the_rest_is_fetched(hub: Hub, fetch: Run, tmp_path: Path) -> None:
    hub.repositories["team/pairs"].gated = True
    assert "its terms must be accepted first" in fetch("--dry-run").stdout
    answer = fetch()
    assert answer.returncode == 1
    assert "accept its terms at https://huggingface.co/datasets/team/pairs" in answer.stderr
    assert (tmp_path / "raw/mono/deu_Latn/train.jsonl").is_file()
    del hub.repositories["team/pairs"]
    answer = fetch("--dry-run")
    assert answer.returncode == 1
    assert "team/pairs: the Hub answered 404" in answer.stderr


def test_a_full_disk_is_found_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fetching needs 1000000000\.0 GB of disk"):
        check_space(tmp_path / "new" / "folder", 10**18)
