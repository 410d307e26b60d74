"""Packing from end to end: against an independent construction, in parts, after kills, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer as Reference

from emma.base.errors import UserError
from emma.base.staging import staged_folder
from emma.recipes.schema.model import Tokenizer
from emma.tools.pack import engine, inputs, run, unit
from emma.tools.pack.engine import forget_engine
from emma.tools.pack.join import join_units, work_folder
from emma.tools.pack.plan import ComponentPlan, PackSettings
from emma.tools.pack.run import pack_store
from emma.tools.pack.store import open_component
from emma.tools.pack.tokenizer_file import TokenizerFile
from tests.tiny_text import BEGIN, END, SENTENCES, documents
from tests.tools.pack.conftest import MakeSettings
from tests.tools.pack.test_engine import Broken


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work units of a few kilobytes, so that small inputs have many."""
    monkeypatch.setattr(inputs, "_SMALLEST_UNIT", 10_000)


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """The same kind of text as jsonl, parquet and gzip, with empty documents and documents of one token."""
    import gzip

    files = []
    for number, language in enumerate(SENTENCES):
        rows = [
            {"id": f"{language}/{i}", "text": text, "language": language, "source": "tiny"}
            for i, text in enumerate(documents(language, 60))
        ]
        rows[7]["text"], rows[11]["text"] = "", "a"
        folder = tmp_path / "raw" / language
        folder.mkdir(parents=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if number % 3 == 0:
            files.append(folder / "train.jsonl")
            files[-1].write_text(lines, encoding="utf-8")
        elif number % 3 == 1:
            files.append(folder / "train.parquet")
            pq.write_table(pa.Table.from_pylist(rows), files[-1], row_group_size=16)
        else:
            files.append(folder / "validation.jsonl.gz")
            files[-1].write_bytes(gzip.compress(lines.encode()))
    return files


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a component but the manifest."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }


def expected(corpus: list[Path], tokenizer: TokenizerFile) -> Iterator[tuple[str, str, list[int]]]:
    """Id, split and tokens of every document, made with the reference tokenizer, one document at a time."""
    plain = json.loads(tokenizer.path.read_text())
    plain["added_tokens"] = []
    reference = Reference.from_str(json.dumps(plain))
    for path in sorted(corpus):
        language = path.parent.name
        for i, text in enumerate(documents(language, 60)):
            if i in (7, 11):
                continue
            ids = reference.encode(text, add_special_tokens=False).ids
            split = "validation" if path.name.startswith("validation") else "train"
            yield f"{language}/{i}", split, [tokenizer.begin_of_text_id, *ids, tokenizer.end_of_text_id]


@pytest.mark.usefixtures("small_units")
def test_the_store_holds_every_document_as_the_reference_makes_it(
    make_settings: MakeSettings, corpus: list[Path], tokenizer: TokenizerFile
) -> None:
    settings = make_settings(corpus, engine="fastest")
    report = pack_store(settings, workers=1)["web"]
    assert report["in"] == 360 and report["kept"] == 348
    assert report["removed_by"] == {"empty": 6, "short": 6}
    component = open_component(settings.store / "web")
    assert component.dtype == np.uint16
    found = []
    for shard in component.shards:
        tokens = np.fromfile(shard.bin_path, component.dtype)
        rows = pq.read_table(shard.documents_path).to_pylist()
        assert [row["row"] for row in rows] == list(range(len(rows)))
        for row in rows:
            begin = row["offset"] // 2
            found.append((row["document_id"], row["split"], tokens[begin : begin + row["tokens"]].tolist()))
            assert row["component"] == "web" and row["language"] == row["document_id"].split("/")[0]
            number = int(row["document_id"].split("/")[1])
            assert row["bytes"] == len(documents(row["language"], 60)[number].encode())
    assert found == list(expected(corpus, tokenizer))
    sources = component.sources.to_pylist()
    assert sum(row["tokens"] for row in sources) == report["tokens"] == sum(len(ids) for _, _, ids in found)
    assert {(row["language"], row["split"]) for row in sources} == {
        (path.parent.name, "validation" if path.name.startswith("v") else "train") for path in corpus
    }
    manifest = component.manifest
    assert {record.path for record in manifest.inputs} == {str(path) for path in corpus}
    assert all(
        record.checksum == f"sha256:{hashlib.sha256(Path(record.path).read_bytes()).hexdigest()}"
        for record in manifest.inputs
    )
    assert manifest.check_outputs(component.folder, contents=True) == []


@pytest.mark.usefixtures("small_units")
def test_processes_and_array_tasks_change_no_byte(make_settings: MakeSettings, corpus: list[Path]) -> None:
    alone = make_settings(corpus, "alone")
    pack_store(alone, workers=1)
    parts = make_settings(corpus, "parts")
    for index in (2, 0):
        report = pack_store(parts, shard=(index, 3), workers=1)["web"]
        assert report["status"] == "unfinished" and report["units_missing"] > 0
    with pytest.raises(UserError, match=r"\d+ of \d+ work units are not packed yet \(the first is 1\)"):
        pack_store(parts, finish_only=True, workers=1)
    assert pack_store(parts, shard=(1, 3), workers=1)["web"]["units_missing"] == 0
    assert pack_store(parts, finish_only=True, workers=1)["web"]["status"] == "packed"
    assert content(parts.store / "web") == content(alone.store / "web")
    assert len([name for name in content(alone.store / "web") if name.endswith(".bin")]) > 3


def test_two_processes_write_what_one_does(make_settings: MakeSettings, corpus: list[Path]) -> None:
    one, two = make_settings(corpus, "one"), make_settings(corpus, "two")
    pack_store(one, workers=1)
    pack_store(two, workers=2)
    assert content(one.store / "web") == content(two.store / "web")


def test_a_unit_that_a_process_still_packs_is_not_removed(
    make_settings: MakeSettings, corpus: list[Path]
) -> None:
    """Another machine, which this one's locks don't reach, has packed the same unit and finished the component."""
    settings = make_settings(corpus)
    pack_store(settings, workers=1)
    work = settings.store / "web" / ".pack"
    (work / "unit-000001").mkdir(parents=True)
    with staged_folder(work / "unit-000000") as folder:
        pack_store(settings, workers=1)
        assert folder.is_dir() and not (work / "unit-000001").exists()
    assert (work / "unit-000000").is_dir()
    pack_store(settings, workers=1)
    assert not work.exists()


def test_a_component_that_another_machine_joins_at_the_same_time_is_packed(
    make_settings: MakeSettings, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(corpus)

    def late(settings: PackSettings, plan: ComponentPlan, proof: Any) -> None:
        join_units(settings, plan, proof)
        shutil.rmtree(work_folder(settings, plan.name))
        join_units(settings, plan, proof)

    monkeypatch.setattr(run, "join_units", late)
    assert pack_store(settings, workers=1)["web"]["status"] == "packed"


def test_packing_twice_does_nothing_twice(make_settings: MakeSettings, corpus: list[Path]) -> None:
    settings = make_settings(corpus)
    pack_store(settings, workers=1)
    before = {path: path.stat().st_mtime_ns for path in (settings.store / "web").iterdir()}
    assert pack_store(settings, workers=1)["web"]["status"] == "was packed before"
    assert {path: path.stat().st_mtime_ns for path in (settings.store / "web").iterdir()} == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_input_or_settings_are_refused(
    make_settings: MakeSettings, corpus: list[Path], finished: bool
) -> None:
    settings = make_settings(corpus)
    pack_store(settings, workers=1, shard=None if finished else (0, 2))
    with pytest.raises(UserError, match="begun with other settings: min_tokens was 2 and is now 5"):
        pack_store(make_settings(corpus, min_tokens=5), workers=1)
    with pytest.raises(UserError, match=r"begun from other input: .*rus_Cyrl.* is gone"):
        pack_store(make_settings([path for path in corpus if "rus" not in str(path)]), workers=1)
    corpus[0].write_text('{"text": "another"}\n')
    with pytest.raises(
        UserError, match=r"begun from other input: .*eng_Latn/train\.jsonl was changed \(\d+ bytes"
    ):
        pack_store(settings, workers=1)


def test_shards_keep_their_size_and_whole_documents(
    make_settings: MakeSettings, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_settings(corpus, "whole")
    pack_store(whole, workers=1)
    monkeypatch.setattr(unit._UnitWriter, "shard_bytes", 5000)
    cut = make_settings(corpus, "cut")
    pack_store(cut, workers=1)
    shards = open_component(cut.store / "web").shards
    assert len(shards) > 5 and all(0 < shard.bytes <= 5000 for shard in shards)
    joined = b"".join(shard.bin_path.read_bytes() for shard in shards)
    assert joined == b"".join(s.bin_path.read_bytes() for s in open_component(whole.store / "web").shards)


def test_long_documents_are_cut_or_dropped_and_counted(make_settings: MakeSettings, tmp_path: Path) -> None:
    path = tmp_path / "raw" / "eng_Latn" / "a.jsonl"
    path.parent.mkdir(parents=True)
    lengths = [10, 90, 91, 300]
    path.write_text(
        "".join(json.dumps({"id": str(n), "text": "z " * (n // 2) + "z" * (n % 2)}) + "\n" for n in lengths)
    )
    settings = make_settings([path], "cut", max_tokens=90)
    plain = make_settings([path], "plain")
    assert pack_store(plain, workers=1)["web"]["kept"] == 4
    report = pack_store(settings, workers=1)["web"]
    whole = {row["document_id"]: row["tokens"] - 2 for row in documents_of(plain.store)}
    rows = documents_of(settings.store)
    longer = [id_ for id_, tokens in whole.items() if tokens > 90]
    assert longer and report["documents_cut"] == len(longer)
    for id_ in longer:
        pieces = [row for row in rows if row["document_id"].startswith(f"{id_}#")]
        assert [row["document_id"] for row in pieces] == [f"{id_}#{i}" for i in range(len(pieces))]
        sizes = [row["tokens"] - 2 for row in pieces]
        assert sum(sizes) == whole[id_] and max(sizes) <= 90 and max(sizes) - min(sizes) <= 1
        assert sum(row["bytes"] for row in pieces) == len("z " * (int(id_) // 2) + "z" * (int(id_) % 2))
    body = [id_ for id_ in tokens_of(settings.store) if id_ < 510]
    assert body == [id_ for id_ in tokens_of(plain.store) if id_ < 510], "cutting loses no token"
    dropped = pack_store(make_settings([path], "drop", max_tokens=90, long_documents="drop"), workers=1)[
        "web"
    ]
    assert dropped["removed_by"] == {"long": len(longer)} and dropped["kept"] == 4 - len(longer)


def documents_of(store: Path) -> list[dict[str, object]]:
    return [
        row
        for shard in open_component(store / "web").shards
        for row in pq.read_table(shard.documents_path).to_pylist()
    ]


def tokens_of(store: Path) -> list[int]:
    component = open_component(store / "web")
    return [id_ for s in component.shards for id_ in np.fromfile(s.bin_path, component.dtype).tolist()]


@pytest.mark.usefixtures("planted")
def test_the_gates_fallback_is_recorded(
    make_settings: MakeSettings, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine._CLASSES, "fastokens", WrongOnBread)
    forget_engine("fastokens")
    settings = make_settings(corpus, "broken", engine="fastokens")
    report = pack_store(settings, workers=1)["web"]
    forget_engine("fastokens")
    assert (report["engine"], report["languages_encoded_by_the_reference"]) == ("fastokens", ["fra_Latn"])
    right = make_settings(corpus, "right")
    pack_store(right, workers=1)
    assert content(settings.store / "web") == content(right.store / "web")


class WrongOnBread(Broken):
    """A fast engine whose fault no certificate shows."""

    wrong = "pain chaque"


@pytest.mark.usefixtures("planted")
def test_an_engine_that_its_certificate_refuses_encodes_nothing(
    make_settings: MakeSettings, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine._CLASSES, "fastokens", Broken)
    forget_engine("fastokens")
    report = pack_store(make_settings(corpus, engine="fastokens"), workers=1)["web"]
    forget_engine("fastokens")
    assert report["engine"] == "tokenizers" and report["encoded_twice"]["of"] == 0
    assert "fastokens gives" in report["engines_passed_over"]["fastokens"]


@pytest.fixture
def unread_tokenizer(tokenizer_folder: Path, tmp_path: Path) -> TokenizerFile:
    """A tokenizer with pre-tokenizers that no fast engine knows."""
    value = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    steps = [
        {"type": "UnicodeScripts"},
        {"type": "Punctuation", "behavior": "Isolated"},
        value["pre_tokenizer"],
    ]
    value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    folder = tmp_path / "unread"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(value))
    return TokenizerFile(Tokenizer(path=str(folder), begin_of_text=BEGIN, end_of_text=END), 512)


@pytest.mark.parametrize("workers", [1, 2])
def test_fastest_is_the_fastest_engine_that_can_read_the_tokenizer(
    make_settings: MakeSettings, corpus: list[Path], unread_tokenizer: TokenizerFile, workers: int
) -> None:
    def settings(store: str, name: str) -> PackSettings:
        return replace(make_settings(corpus, store, engine=name), tokenizer=unread_tokenizer)

    report = pack_store(settings("fastest", "fastest"), workers=workers)["web"]
    assert (report["engine"], report["languages_encoded_by_the_reference"]) == ("tokenizers", [])
    assert all("cannot load it" in reason for reason in report["engines_passed_over"].values())
    assert "fastokens" in report["engines_passed_over"]
    right = settings("right", "tokenizers")
    pack_store(right, workers=1)
    assert content(settings("fastest", "fastest").store / "web") == content(right.store / "web")
    with pytest.raises(UserError, match="fastokens cannot load it"):
        pack_store(settings("named", "fastokens"), workers=workers)


def test_so_little_text_needs_no_fast_engine_and_no_other_process(
    make_settings: MakeSettings, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    much = make_settings(corpus, "much", engine="fastest")
    pack_store(much, workers=1)
    size = sum(path.stat().st_size * (1 if path.suffix == ".jsonl" else 16) for path in corpus)
    monkeypatch.setattr(run, "LITTLE", size)
    settings = make_settings(corpus, engine="fastest")
    assert run.engine_for(settings, ["web"]) == ("tokenizers", True)
    with monkeypatch.context() as patch:
        for name in ("gigatoken", "fastokens"):
            patch.delitem(engine._CLASSES, name)
        patch.setattr(run, "start_workers", None)
        forget_engine("fastokens")
        report = pack_store(settings, workers=2, fork=True)["web"]
    assert report["engine"] == "tokenizers" and report["encoded_twice"]["of"] == 0
    assert "would take longer than encoding so little text" in report["engines_passed_over"]["fastokens"]
    assert content(settings.store / "web") == content(much.store / "web")
    # An engine that the recipe names is used; what is larger by a byte is not little.
    assert (
        pack_store(make_settings(corpus, "named", engine="fastokens"), workers=1)["web"]["engine"]
        == "fastokens"
    )
    monkeypatch.setattr(run, "LITTLE", size - 1)
    assert (
        pack_store(make_settings(corpus, "more", engine="fastest"), workers=1)["web"]["engine"] == "gigatoken"
    )


def test_a_broken_engine_is_not_passed_over(
    make_settings: MakeSettings, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, tokenizer: TokenizerFile) -> None:
            raise ImportError("libwhatever.so: no such file")

    for name in ("gigatoken", "fastokens"):
        monkeypatch.setitem(engine._CLASSES, name, Broken)
        forget_engine("fastokens")
    with pytest.raises(UserError, match=r"cannot load it .*libwhatever"):
        pack_store(make_settings(corpus, engine="fastest"), workers=1)


@pytest.mark.usefixtures("planted")
def test_a_language_that_shows_up_late_is_gated_too(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emma.tools.pack import gate

    monkeypatch.setattr(gate, "_HEAD", 100)
    monkeypatch.setattr(gate, "_HEADS", 100)
    monkeypatch.setitem(engine._CLASSES, "fastokens", WrongOnBread)
    forget_engine("fastokens")
    path = tmp_path / "mixed.jsonl"
    rows = [("eng_Latn", text) for text in documents("eng_Latn", 50)] + [
        ("fra_Latn", t) for t in documents("fra_Latn", 5)
    ]
    path.write_text(
        "".join(json.dumps({"text": text, "language": language}) + "\n" for language, text in rows)
    )
    report = pack_store(make_settings([path], engine="fastokens"), workers=1)["web"]
    forget_engine("fastokens")
    assert report["languages_encoded_by_the_reference"] == ["fra_Latn"]


def test_bad_input_is_named_and_nothing_is_left_half(make_settings: MakeSettings, corpus: list[Path]) -> None:
    with corpus[0].open("a") as handle:
        handle.write('{"text": \n')
    settings = make_settings(corpus)
    with pytest.raises(UserError, match=r"eng_Latn/train\.jsonl:61: not valid JSON"):
        pack_store(settings, workers=1)
    assert not list((settings.store / "web").glob("*.bin"))
    assert not list((settings.store / "web" / ".pack").glob("*.partial"))


def test_an_unknown_component_and_a_missing_corpus_are_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(UserError, match=r"no component 'x' in data\.pack\.components; there are web"):
        pack_store(make_settings(None), ["x"], workers=1)
    with pytest.raises(UserError, match=r"split/web: no such folder, so component 'web' has no input"):
        pack_store(make_settings(None), workers=1)
    with pytest.raises(UserError, match=r"split/parallel: no such folder"):
        pack_store(make_settings(None, kind="bilingual"), workers=1)


def test_a_kill_between_renames_is_completed(
    make_settings: MakeSettings, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from emma.tools.pack import join

    monkeypatch.setattr(inputs, "_SMALLEST_UNIT", 10_000)
    right, settings = make_settings(corpus, "right"), make_settings(corpus)
    pack_store(right, workers=1)
    real, moves = join._move, 0

    def dying(source: Path, target: Path) -> None:
        nonlocal moves
        moves += 1
        if moves == 6:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(join, "_move", dying)
    with pytest.raises(KeyboardInterrupt):
        pack_store(settings, workers=1)
    monkeypatch.setattr(join, "_move", real)
    assert pack_store(settings, workers=1)["web"]["status"] == "packed"
    assert content(settings.store / "web") == content(right.store / "web")


PACK = """
import sys
from pathlib import Path
from emma.recipes.schema.data import Pack
from emma.recipes.schema.model import Tokenizer
from tests.tiny_text import BEGIN, END
from emma.tools.pack import inputs
from emma.tools.pack.plan import PackSettings
from emma.tools.pack.plan import PackSettings
from emma.tools.pack.run import pack_store
from emma.tools.pack.tokenizer_file import TokenizerFile

if __name__ == "__main__":
    folder, store, tokenizer = sys.argv[1:]
    inputs._SMALLEST_UNIT = 20_000
    pack = Pack.model_validate({"components": {"web": {"inputs": [folder]}}, "engine": "tokenizers"})
    file = TokenizerFile(Tokenizer(path=tokenizer, begin_of_text=BEGIN, end_of_text=END), 512)
    pack_store(PackSettings(pack, file, Path("corpus"), Path(store), "0" * 64), workers=1)
"""


def killed_until_done(command: list[str], store: Path, seconds: list[float]) -> int:
    """Starts the command repeatedly, with a SIGKILL each listed time after it began a unit, then runs it to its end;
    counts the kills."""
    environment = {**os.environ, "EMMA_PROGRESS": "0", "PYTHONPATH": os.pathsep.join(sys.path)}

    def unfinished() -> set[Path]:
        return set((store / "web" / ".pack").glob(".unit-*.partial"))

    kills = 0
    for wait in seconds:
        before = unfinished()
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        while process.poll() is None and unfinished() <= before:
            time.sleep(0.002)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run(command, env=environment, check=True)
    return kills


def run_kills(tmp_path: Path, make_settings: MakeSettings, corpus: list[Path], kills: int) -> None:
    settings = make_settings(corpus, "uninterrupted")
    for path in corpus:
        if path.name.endswith(".jsonl"):
            path.write_text(path.read_text() * 15)
    (tmp_path / "pack.py").write_text(PACK)
    folder, store = tmp_path / "raw", tmp_path / "killed"
    base = [sys.executable, str(tmp_path / "pack.py"), str(folder)]
    tokenizer = settings.tokenizer.settings.path
    environment = {**os.environ, "EMMA_PROGRESS": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*base, str(settings.store), tokenizer], env=environment, check=True)
    moments = np.random.default_rng(7).uniform(0, 0.06, kills)
    done = killed_until_done([*base, str(store), tokenizer], store, moments.tolist())
    assert done > 0
    assert content(store / "web") == content(settings.store / "web")
    assert not (store / "web" / ".pack").exists(), "what killed processes left is gone"


def test_killed_at_random_moments_it_writes_the_same_bytes(
    tmp_path: Path, make_settings: MakeSettings, corpus: list[Path]
) -> None:
    run_kills(tmp_path, make_settings, corpus, 3)


@pytest.mark.slow
def test_killed_twenty_times_it_writes_the_same_bytes(
    tmp_path: Path, make_settings: MakeSettings, corpus: list[Path]
) -> None:
    run_kills(tmp_path, make_settings, corpus, 20)
