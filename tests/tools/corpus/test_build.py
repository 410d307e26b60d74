from __future__ import annotations

import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emma.base.claims import machine, temporary_name
from emma.base.errors import UserError
from emma.base.manifest import Manifest
from emma.base.writers import InUseError, sole_writer
from emma.recipes.schema.corpus import (
    Corpus,
    Deduplication,
    Languages,
    NearDuplicates,
    Normalisation,
    Source,
    Split,
)
from emma.tools.corpus.build import build_corpus, plan_build, stages_of, totals
from emma.tools.corpus.layout import STAGES, TEXT_SCHEMA, PartWriter
from emma.tools.corpus.stage import Build
from emma.tools.corpus.statistics import accounts_table, statistics, summary
from emma.tools.corpus.verify import verify_corpus
from tests.tools.corpus.raw_text import (
    ARTICLE,
    LANGUAGES,
    build_at,
    contents,
    documents,
    mono_source,
    pair_source,
    rows_of,
    words,
    write_jsonl,
)


def mixed_build(folder: Path, root: Path, workers: int = 1) -> Build:
    """A corpus of all kinds, in several formats, with documents for rules to remove."""
    rows = documents(12)
    rows += rows[:7]
    rows += [
        {"lang": "en", "text": ARTICLE["ru"]},
        {"lang": "fr", "text": "court"},
        {"lang": "de", "text": " \n "},
    ]
    write_jsonl(folder / "mono.jsonl.gz", rows, compress=True)
    (folder / "books").mkdir(exist_ok=True)
    (folder / "books" / "fr.txt").write_text("\n\n".join(words(i, 150) for i in range(4)))
    pairs = [
        {"src_lang": "en", "src_text": words(i, 9), "tgt_lang": "sr_latin", "tgt_text": words(i + 100, 9)}
        for i in range(40)
    ]
    pairs.append(pairs[0])
    write_jsonl(folder / "pairs.jsonl", pairs)
    (folder / "n.en").write_text("".join(f"{words(i, 8)}\n" for i in range(30)))
    (folder / "n.de").write_text("".join(f"{words(i + 200, 8)}\n" for i in range(30)))
    code = [{"lang": "C++", "text": f"int f{i}() {{\n  return {i};\n}}\n", "lic": "MIT"} for i in range(10)]
    pq.write_table(pa.Table.from_pylist(code), folder / "code.parquet")
    write_jsonl(
        folder / "chat.jsonl", ({"q": f"Why {i}? {words(i, 5)}", "a": words(i + 300, 9)} for i in range(9))
    )
    sources = {
        "web": mono_source(folder / "mono.jsonl.gz"),
        "library": Source(
            kind="books", path=f"{folder}/books/{{language}}.txt", license="PD", text_unit="block"
        ),
        "pairs": pair_source(folder / "pairs.jsonl"),
        "news": Source(
            kind="parallel",
            path=f"{folder}/{{name}}.en",
            target_path=f"{folder}/{{name}}.de",
            license="PD",
            src_lang="eng",
            tgt_lang="deu",
        ),
        "code": Source(
            kind="code",
            path=f"{folder}/code.parquet",
            license="mixed",
            license_column="lic",
            language_column="lang",
        ),
        "chat": Source(
            kind="instruction",
            path=f"{folder}/chat.jsonl",
            license="PD",
            language="en",
            text_columns=["q", "a"],
            template="{q}\n{a}",
        ),
    }
    return build_at(
        root,
        sources,
        workers,
        deduplication=Deduplication(near=NearDuplicates()),
        split=Split(share=0.2),
        part_megabytes=0.002,
    )


def test_every_kind_goes_through_and_every_document_is_accounted_for(tmp_path: Path) -> None:
    build = mixed_build(tmp_path, tmp_path / "corpus")
    build_corpus(build)
    before = 12 * 10 + 7 + 3 + 4 + 41 + 30 + 10 + 9
    for stage in STAGES:
        counts = totals(build)[stage]
        assert counts["in"] == before
        assert counts["in"] == counts["kept"] + sum(counts["removed_by"].values())
        assert counts["kept"] == len(rows_of(build.root, stage))
        before = counts["kept"]
    table = accounts_table(build.root).to_pylist()
    for stage in STAGES:
        of_stage = [row for row in table if row["stage"] == stage]
        assert sum(row["documents"] for row in of_stage) == totals(build)[stage]["in"]
        for row in (row for row in of_stage if row["outcome"] == "kept"):
            found = [
                r
                for r in rows_of(build.root, stage, row["kind"], row["language"])
                if r["source"] == row["source"]
            ]
            texts = [r[name] for r in found for name in ("text", "src_text", "tgt_text") if name in r]
            assert row["documents"] == len(found)
            assert row["characters"] == sum(map(len, texts))
            assert row["bytes"] == sum(len(text.encode()) for text in texts)
            assert row["tokens"] == sum(len(text.split()) for text in texts)
    assert verify_corpus(build, contents=True) == []
    assert {path.name for path in (build.root / "split").iterdir()} == {
        "monolingual", "books", "parallel", "code", "instruction", "manifest.json",
    }  # fmt: skip
    assert not (build.root / ".work").exists()


def test_rows_carry_codes_and_provenance(tmp_path: Path) -> None:
    build = mixed_build(tmp_path, tmp_path / "corpus")
    build_corpus(build)
    found = {row["language"] for row in rows_of(build.root, "split", "monolingual")}
    assert found == set(LANGUAGES.values())
    row = rows_of(build.root, "split", "parallel", "eng_Latn-srp_Latn")[0]
    assert list(row) == ["id", "src_lang", "src_text", "tgt_lang", "tgt_text", "source", "license", "split"]
    assert (row["src_lang"], row["tgt_lang"], row["source"], row["license"]) == (
        "eng_Latn",
        "srp_Latn",
        "pairs",
        "CC0-1.0",
    )
    assert row["id"].startswith("pairs/pairs.jsonl#")
    code = rows_of(build.root, "split", "code", "c++")
    assert {r["license"] for r in code} == {"MIT"}
    assert code[0]["text"].endswith("}\n")
    chat = rows_of(build.root, "split", "instruction", "eng_Latn")
    assert chat[0]["text"].startswith("Why ")
    assert "\n" in chat[0]["text"]
    assert {r["split"] for r in rows_of(build.root, "split")} == {"train", "validation"}


def test_workers_and_a_second_build_change_nothing(tmp_path: Path) -> None:
    one = mixed_build(tmp_path, tmp_path / "one")
    two = mixed_build(tmp_path, tmp_path / "two", workers=2)
    build_corpus(one)
    build_corpus(two)
    assert contents(one.root) == contents(two.root)
    assert len(contents(one.root)) > 60
    written = {path: path.stat().st_mtime_ns for path in one.root.rglob("*.parquet")}
    build_corpus(one)
    parts = {path for path in written if path.name.startswith("part-")}
    assert all(path.stat().st_mtime_ns == written[path] for path in parts)


SCRIPT = """
import dataclasses, pathlib, pickle, sys
from emma.tools.corpus.build import build_corpus
build = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
build_corpus(dataclasses.replace(build, root=pathlib.Path(sys.argv[2])))
"""


def test_killed_at_any_moment_the_result_is_the_same(tmp_path: Path) -> None:
    whole = mixed_build(tmp_path, tmp_path / "whole")
    build_corpus(whole)
    (tmp_path / "build.pickle").write_bytes(pickle.dumps(whole))
    environment = {**os.environ, "EMMA_PROGRESS": "0"}
    chooser = random.Random(1)
    marks: dict[Path, int] = {}
    kills = 0
    root = tmp_path / "killed"
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "build.pickle"), str(root)],
            env=environment,
            cwd=Path(__file__).parents[3],
            start_new_session=True,
        )
        # Kill after the next few task marks, at whatever point of the following task that is.
        goal = len(list((root / ".work").rglob("*.json"))) + chooser.randint(1, 3) if kills < 6 else 10**6
        while process.poll() is None:
            time.sleep(0.002)
            if len(list((root / ".work").glob("*/*/*.json"))) >= goal:
                time.sleep(chooser.random() * 0.01)
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
        for mark, changed in marks.items():
            # A task that was finished is not run again: its mark is the old one, or its stage is done.
            assert not mark.exists() or mark.stat().st_mtime_ns == changed
        marks = {mark: mark.stat().st_mtime_ns for mark in (root / ".work").glob("*/*/*.json")}
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert kills >= 4
    assert contents(root) == contents(whole.root)
    assert verify_corpus(whole, contents=True) == []


def test_changed_settings_rebuild_from_where_they_matter(tmp_path: Path) -> None:
    build = mixed_build(tmp_path, tmp_path / "corpus")
    build_corpus(build)
    finished = {stage: Manifest.read(build.root / stage).extra["fingerprint"] for stage in STAGES}
    changed = build_at(
        build.root,
        dict(build.corpus.sources),
        **{
            name: getattr(build.corpus, name)
            for name in type(build.corpus).model_fields
            if name not in ("sources", "split")
        },
        split=Split(share=0.5),
    )
    build_corpus(changed)
    after = {stage: Manifest.read(build.root / stage).extra["fingerprint"] for stage in STAGES}
    assert [stage for stage in STAGES if after[stage] != finished[stage]] == ["split"]
    shutil.rmtree(build.root / "filtered" / "books")
    build_corpus(changed)
    assert verify_corpus(changed, contents=True) == []


def test_two_builds_of_one_corpus_are_refused(tmp_path: Path) -> None:
    """Though they call it by two names."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "corpus").symlink_to("disk")
    build = mixed_build(tmp_path, tmp_path / "corpus")
    with (
        sole_writer(tmp_path / "disk", inside=True),
        pytest.raises(InUseError, match=rf"corpus: process {os.getpid()} of .* is writing it"),
    ):
        build_corpus(build)
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_resumed_stage_removes_only_what_dead_processes_of_this_machine_left(tmp_path: Path) -> None:
    build = mixed_build(tmp_path, tmp_path / "corpus")
    stage = next(stages_of(build))
    stage.begin()
    here = stage.folder / temporary_name("part-00000.parquet")
    elsewhere = here.with_name(here.name.replace(machine(), "another-00000000"))
    here.parent.mkdir()
    here.touch()
    elsewhere.touch()
    with PartWriter(stage.folder / "part-00001.parquet", TEXT_SCHEMA, ("text",)) as writer:
        writer.write(pa.table({name: ["x"] for name in TEXT_SCHEMA.names}))
        writer._flush()
        stage.begin()
    assert not here.exists() and elsewhere.exists()
    assert (stage.folder / "part-00001.parquet").exists(), "its writer lived"


def test_a_part_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path: Path) -> None:
    """Closing its file fails as well, with what was not written yet."""
    rows = [dict.fromkeys(TEXT_SCHEMA.names, random.Random(n).randbytes(20).hex()) for n in range(20)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with (
            pytest.raises(OSError, match="too large"),
            PartWriter(tmp_path / "part-00000.parquet", TEXT_SCHEMA, ("text",)) as writer,
        ):
            writer.write(pa.Table.from_pylist(rows, schema=TEXT_SCHEMA))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_holds_one_corpus(tmp_path: Path) -> None:
    build = mixed_build(tmp_path, tmp_path / "corpus")
    build_corpus(build, "integrated")
    other = Build(build.corpus, "another", build.root, "0" * 64)
    with pytest.raises(UserError, match=r"holds the corpus of the data recipe `test`.*paths\.corpus"):
        build_corpus(other)


BAD: list[tuple[str, dict[str, Any], bytes, str]] = [
    ("a.jsonl", {}, b'{"lang": "en", "text": "fine"}\n{"lang": "en"\n', r"a\.jsonl: line 2: not valid JSON"),
    ("a.jsonl", {}, b'{"lang": "en", "body": "x"}\n', r"a\.jsonl: line 1: no key `text` .*lang, body"),
    ("a.jsonl", {}, b'{"lang": "en", "text": 3}\n', r"a\.jsonl: line 1: `text` is of type int, not text"),
    ("a.jsonl", {}, b'{"lang": "en", "text": "\xe9"}\n', r"a\.jsonl: line 1: invalid UTF-8 at byte 25"),
    (
        "a.jsonl",
        {},
        b'{"lang": "qqx", "text": "fine"}\n',
        r"a\.jsonl: line 1: unknown language code `qqx`; nearest",
    ),
    ("a.jsonl", {}, b'{"lang": null, "text": "fine"}\n', r"a\.jsonl: line 1: `lang` is of type NoneType"),
    ("a.jsonl", {}, b"", "no document left"),
    ("a.jsonl", {}, b'{"lang": "en", "text": "  "}\n', r"no document left .*'empty': 1"),
    (
        "a.jsonl.gz",
        {},
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
        r"a\.jsonl\.gz: its compressed data is truncated",
    ),
    ("a.jsonl", {"template": "{q}"}, b'{"lang": "en", "text": "x"}\n', r"line 1: the template names 'q'"),
]


@pytest.mark.parametrize(("name", "settings", "data", "message"), BAD)
def test_bad_input_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, settings: dict[str, Any], data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    build = build_at(tmp_path / "corpus", {"s": mono_source(tmp_path / name, **settings)})
    with pytest.raises(UserError, match=message):
        build_corpus(build)
    assert not build.root.exists()


def test_bad_lines_up_to_a_share_are_set_apart(tmp_path: Path) -> None:
    rows = [b'{"lang": "en", "text": "%s"}' % words(i, 20).encode() for i in range(990)]
    for place in range(10):
        rows.insert(place * 99, b'{"lang": "en", "text": 1}' if place % 2 else b"{broken")
    raw = tmp_path / "raw.jsonl"
    raw.write_bytes(b"\n".join(rows))
    build = build_at(tmp_path / "corpus", {"s": mono_source(raw, max_bad_lines=0.01)})
    build_corpus(build)
    counts = totals(build)["integrated"]
    assert (counts["in"], counts["kept"], counts["removed_by"]) == (1000, 990, {"invalid_line": 10})
    apart = [orjson.loads(line) for line in (build.root / "quarantine/s.jsonl").read_bytes().splitlines()]
    assert sorted(row["line"] for row in apart) == [place * 99 + 1 for place in range(10)]
    assert {row["file"] for row in apart} == {str(raw)}
    strict = build_at(tmp_path / "strict", {"s": mono_source(raw, max_bad_lines=0.009)})
    with pytest.raises(UserError, match=r"10 of 1000 lines are unusable \(1\.00%\).*line 1:"):
        build_corpus(strict)


def test_planted_faults(tmp_path: Path) -> None:
    good = documents(10, ["en", "ru", "sr", "hi"])
    planted = [
        {"lang": "rus_Cyrl", "text": ARTICLE["en"]},  # not Russian
        {"lang": "srp_Cyrl", "text": words(5, 40)},  # Serbian in Latin, labelled Cyrillic
        {"lang": "ru", "text": ARTICLE["ru"].encode().decode("latin-1")},  # mojibake that can be repaired
        {
            "lang": "de",
            "text": ("Würde und Rechte für Männer " * 3).replace("ü", "\ufffd").replace("ä", "\ufffd"),
        },
        {"lang": "en", "text": "x" * 3_000_000},
    ]
    raw = write_jsonl(tmp_path / "raw.jsonl", good + planted)
    pairs = [
        {"src_lang": "en", "src_text": ARTICLE["en"], "tgt_lang": "ru", "tgt_text": ARTICLE["ru"]},
        {"src_lang": "en", "src_text": ARTICLE["ru"], "tgt_lang": "ru", "tgt_text": ARTICLE["en"]},  # swapped
        {"src_lang": "en", "src_text": ARTICLE["en"], "tgt_lang": "de", "tgt_text": ARTICLE["en"]},  # copied
    ]
    build = build_at(
        tmp_path / "corpus",
        {"s": mono_source(raw), "p": pair_source(write_jsonl(tmp_path / "pairs.jsonl", pairs))},
        max_document_megabytes=1,
    )
    build_corpus(build)
    integrated, filtered = totals(build)["integrated"]["removed_by"], totals(build)["filtered"]["removed_by"]
    assert integrated == {"oversized": 1}
    assert filtered == {"wrong_script": 2, "broken_encoding": 1, "copy_of_source": 1}
    texts = {row["text"]: row["language"] for row in rows_of(build.root, "split", "monolingual")}
    assert texts[words(5, 40)] == "srp_Latn"
    assert texts[ARTICLE["ru"]] == "rus_Cyrl"
    assert len(rows_of(build.root, "split", "parallel")) == 1
    labels = Manifest.read(build.root / "integrated").extra["labels"]
    changed = [row for row in labels if row["label"] == "srp_Cyrl"]
    assert changed[0]["language"] == "srp_Latn"
    assert "label says Cyrl" in changed[0]["decision"]


def test_a_document_of_200_megabytes_and_a_line_without_an_end_stay_out_of_memory(tmp_path: Path) -> None:
    """Peak memory grows by less than the longest line that is read, three times `max_document_megabytes`."""
    block = b"word " * 200_000

    def peak(name: str, *huge: bytes) -> float:
        raw = write_jsonl(tmp_path / f"{name}.jsonl", documents(4, ["en", "ru"]))
        with raw.open("ab") as handle:
            for end in huge:
                handle.write(b'{"lang": "en", "text": "')
                for _ in range(200):
                    handle.write(block)
                handle.write(end)
        build = build_at(tmp_path / name, {"s": mono_source(raw)})
        (tmp_path / "build.pickle").write_bytes(pickle.dumps(build))
        command = [sys.executable, "-c", SCRIPT + MEASURE, str(tmp_path / "build.pickle"), str(build.root)]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
        )
        removed = totals(build)["integrated"]["removed_by"]
        assert removed == ({"oversized": len(huge)} if huge else {})
        return int(done.stdout.split()[-1]) / 1024

    assert peak("huge", b'"}\n', b"") < peak("small") + 3 * Corpus().max_document_megabytes


# `ru_maxrss` would be that of the process that starts this one, if that is larger.
MEASURE = """
status = pathlib.Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
"""


def test_the_papers_spelling(tmp_path: Path) -> None:
    raw = write_jsonl(tmp_path / "raw.jsonl", documents(2, ["zh", "ja", "en"]))
    build = build_at(tmp_path / "corpus", {"s": mono_source(raw)}, languages=Languages(spelling="mala"))
    build_corpus(build)
    assert {row["language"] for row in rows_of(build.root, "split")} == {"zho_Hani", "jpn_Japn", "eng_Latn"}


def test_verify_names_what_changed(tmp_path: Path) -> None:
    build = mixed_build(tmp_path, tmp_path / "corpus")
    build_corpus(build)
    parts = sorted((build.root / "split/monolingual").glob("*/*.parquet"))
    parts[0].unlink()
    data = bytearray(parts[1].read_bytes())
    data[len(data) // 2] ^= 1
    parts[1].write_bytes(data)
    extra = parts[2].with_name("part-00099.parquet")
    extra.write_bytes(parts[2].read_bytes())
    faults = verify_corpus(build, contents=True)
    for path in (parts[0], parts[1], extra):
        assert any(str(path) in fault for fault in faults)
    assert len(verify_corpus(build)) == 2


def test_statistics_tables(tmp_path: Path) -> None:
    build = mixed_build(tmp_path, tmp_path / "corpus")
    build_corpus(build)
    table = statistics(build.root)
    assert (build.root / "statistics/statistics.csv").is_file()
    assert pq.read_table(build.root / "statistics/statistics.parquet").equals(table)
    english = next(
        row
        for row in table.to_pylist()
        if (row["stage"], row["kind"], row["language"]) == ("split", "monolingual", "eng_Latn")
    )
    found = rows_of(build.root, "split", "monolingual", "eng_Latn")
    assert english["tokens"] == sum(len(row["text"].split()) for row in found)
    assert english["category"] == "unseen"
    totals_of_split = [row for row in summary(table) if row["stage"] == "split"]
    assert sum(row["documents"] for row in totals_of_split) == totals(build)["split"]["kept"]


def test_plan_writes_nothing(tmp_path: Path) -> None:
    build = mixed_build(tmp_path, tmp_path / "corpus")
    plan = plan_build(build)
    assert plan["stages"] == dict.fromkeys(STAGES, "not built")
    assert [entry["files"] for entry in plan["sources"]] == [1, 1, 1, 2, 1, 1]
    assert not build.root.exists()


def test_normalisation_of_code_and_prose(tmp_path: Path) -> None:
    rows = [{"lang": "python", "text": "if x:\n\treturn  '&amp;'  # <b>\n" * 3}]
    source = Source(
        kind="code", path=str(write_jsonl(tmp_path / "c.jsonl", rows)), license="MIT", language_column="lang"
    )
    build = build_at(tmp_path / "corpus", {"c": source}, normalisation=Normalisation())
    build_corpus(build)
    assert rows_of(build.root, "split")[0]["text"] == rows[0]["text"]


def test_only_the_languages_to_keep_are_read(tmp_path: Path) -> None:
    rows = [*documents(5, ["en", "de", "sr"]), {"lang": "C", "text": ARTICLE["en"]}]
    source = mono_source(write_jsonl(tmp_path / "a.jsonl", rows))
    languages = Languages(only=["eng_Latn", "srp_Latn"], labels={"C": "und"})
    build = build_at(tmp_path / "corpus", {"a": source}, languages=languages)
    build_corpus(build)
    kept = {row["language"] for row in rows_of(build.root, "integrated", "monolingual")}
    assert kept == {"eng_Latn"}
    counts = Manifest.read(build.root / "integrated").counts
    # German, Serbian in Cyrillic letters, and the label that names no language.
    assert (counts["in"], counts["kept"], counts["removed_by"]) == (16, 5, {"other_language": 11})
    assert verify_corpus(build, contents=True) == []


def test_a_label_of_no_language_needs_languages_to_keep() -> None:
    with pytest.raises(ValueError, match="needs `only`"):
        Languages(labels={"C": "und"})
    with pytest.raises(ValueError, match="not of the form xxx_Ssss"):
        Languages(only=["sw"])
