"""A folder with all kinds of files: each is read or named, and records that cannot be used are set aside."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from emma.base.errors import UserError
from emma.tools.pack.formats import UnreadableFormatError, kind_of
from emma.tools.pack.inputs import find_files, inputs_among
from emma.tools.pack.recheck import recheck_component
from emma.tools.pack.run import pack_store
from emma.tools.pack.store import open_component
from emma.tools.pack.verify import verify_component
from tests.tools.pack.conftest import MakeSettings

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def lines(*ids: str) -> bytes:
    return b"".join(json.dumps({"id": each, "text": f"document {each}"}).encode() + b"\n" for each in ids)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seventeen files that can be read, one document each, and nine that cannot."""
    folder = tmp_path / "raw" / "eng_Latn"
    (folder / ".git").mkdir(parents=True)
    for name in ("a.jsonl", "b.json", "c.JSONL", "d.ndjson", "e.data"):
        (folder / name).write_bytes(lines(name))
    for ending, compress in COMPRESS.items():
        (folder / f"f.jsonl.{ending}").write_bytes(compress(lines(f"f.{ending}")))
    table = pa.table({"id": ["parquet"], "text": ["document parquet"]})
    pq.write_table(table, folder / "g.parquet")
    pq.write_table(table, folder / "g.bin")
    with pa.OSFile(str(folder / "h.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(folder / "i.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "j.csv").write_text('id,text\ncsv,"document, ""csv"""\n')
    (folder / "k.tsv.gz").write_bytes(gzip.compress(b"id\ttext\ntsv\tdocument tsv\n"))
    (folder / "l.txt").write_text("document txt\nof two lines\n")
    (folder / "m.zip").write_bytes(b"PK\x03\x04rest")
    (folder / "n.bin").write_bytes(b"\x00\x01\x02")
    (folder / "o.md").write_text("# words")
    (folder / "p.json").write_text('[\n{"text": "x"}\n]')
    (folder / "q.json").write_text('{"stage": "corpus", "counts": {}}')
    (folder / "r.txt").write_bytes("a".encode("utf-16"))
    (folder / "_SUCCESS").touch()
    (folder / ".hidden.jsonl").write_bytes(lines("hidden"))
    return folder


def test_every_file_of_a_folder_is_packed_or_named(folder: Path, make_settings: MakeSettings) -> None:
    settings = make_settings([folder])
    report = pack_store(settings, workers=1)["web"]
    assert report["kept"] == 17
    names = {Path(path).name: reason for path, reason in report["inputs_passed_over"].items()}
    assert set(names) == {
        "m.zip",
        "n.bin",
        "o.md",
        "p.json",
        "q.json",
        "r.txt",
        "_SUCCESS",
        ".hidden.jsonl",
        ".git",
    }
    assert "zip" in names["m.zip"] and "array" in names["p.json"] and "'text'" in names["q.json"]
    assert pack_store(settings, workers=1)["web"]["status"] == "was packed before"
    (folder / "new.jsonl").write_bytes(lines("new"))
    with pytest.raises(UserError, match=r"new\.jsonl is new"):
        pack_store(settings, workers=1)


def test_formats_give_the_same_document(folder: Path, make_settings: MakeSettings) -> None:
    settings = make_settings([folder])
    pack_store(settings, workers=1)
    component = open_component(settings.store / "web")
    rows = [
        row
        for shard in component.shards
        for batch in shard.documents(["document_id", "bytes"])
        for row in batch.to_pylist()
    ]
    sizes = {row["document_id"]: row["bytes"] for row in rows}
    assert sizes["csv"] == len('document, "csv"') and sizes["f.xz"] == len("document f.xz")
    assert sizes["l.txt@1"] == len("document txt\nof two lines\n")
    assert [row["document_id"] for row in rows].count("parquet") == 4
    assert recheck_component(settings, "web", 5, 1) == ([], {"encoded_again": 17, "of": 17, "seed": 5})


def test_what_is_named_must_be_readable(folder: Path, make_settings: MakeSettings) -> None:
    for name in ("m.zip", "o.md", "p.json", "_SUCCESS"):
        with pytest.raises(UserError, match=f"{name}: cannot read this format"):
            pack_store(make_settings([folder / name]), workers=1)
    with pytest.raises(UserError, match="no input among"):
        pack_store(make_settings([Path(f"{folder}/*.md")]), workers=1)
    (folder / "cut.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz: named \.gz, but is something else"):
        pack_store(make_settings([folder]), workers=1)


def test_links_and_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.jsonl").write_bytes(lines("a"))
    (tmp_path / "raw" / "sub").mkdir(parents=True)
    (tmp_path / "raw" / "linked").symlink_to(tmp_path / "there")
    (tmp_path / "raw" / "sub" / "up").symlink_to(tmp_path / "raw")
    (tmp_path / "raw" / "broken.jsonl").symlink_to(tmp_path / "nowhere")
    files, passed_over = inputs_among(find_files([tmp_path / "raw"]), ("text",))
    assert [file.path for file in files] == [str(tmp_path / "raw" / "linked" / "a.jsonl")]
    assert list(passed_over) == [str(tmp_path / "raw" / "broken.jsonl")]
    with pytest.raises(UserError, match=r"no input there .*a folder; name it"):
        find_files([f"{tmp_path}/*"])
    (tmp_path / "x.jsonl").write_bytes(lines("x"))
    files, passed_over = inputs_among(find_files([f"{tmp_path}/*", tmp_path / "there"]), ("text",))
    assert len(files) == 2 and list(passed_over) == [str(tmp_path / "raw")]


def test_pairs_are_read_from_csv_and_tmx_and_plain_text_is_named(
    tmp_path: Path, make_settings: MakeSettings
) -> None:
    folder = tmp_path / "raw" / "eng_Latn-fra_Latn"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("src_text,tgt_text\nthe river,la rivière\n")
    (folder / "b.xml").write_text(
        '<?xml version="1.0"?><tmx version="1.4"><header srclang="eng_Latn"/><body><tu>'
        '<tuv xml:lang="eng_Latn"><seg>bread</seg></tuv><tuv xml:lang="fra_Latn"><seg>pain</seg></tuv>'
        "</tu></body></tmx>"
    )
    (folder / "c.txt").write_text("notes")
    report = pack_store(make_settings([folder], kind="bilingual"), workers=1)["web"]
    assert report["in"] == 2 and report["kept"] == 1
    assert list(report["inputs_passed_over"].values()) == [
        "plain text, which has no fields src_text, tgt_text"
    ]
    with pytest.raises(UnreadableFormatError, match="of kind bilingual"):
        kind_of(folder / "b.xml", ("text",))


BAD = [
    '{"text": "\\ud800"}',
    '{"text": "x"',
    '{"body": "x"}',
    '{"text": ["x"]}',
    '"text"',
]


@pytest.mark.parametrize("small", [True, False])
def test_bad_records_are_set_aside(
    small: bool, tmp_path: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr("emma.tools.pack.records._SMALL", 0)
    folder = tmp_path / "raw" / "eng_Latn"
    folder.mkdir(parents=True)
    good = lines(*map(str, range(60))).decode().splitlines()
    for number, line in enumerate(BAD):
        good.insert(10 * number + 5, line)
    (folder / "a.jsonl").write_text("\n".join(good) + "\n")
    binary = pa.array([b"fine", b"\xff\xfe", b"also fine"], pa.binary())
    broken = pa.StringArray.from_buffers(3, *binary.buffers()[1:])
    pq.write_table(pa.table({"text": broken}), folder / "b.parquet")
    (folder / "c.csv").write_bytes(b"text\nfine\nb\xffd\n")
    with pytest.raises(UserError, match=r"a\.jsonl:6: not valid JSON .*max_bad_lines"):
        pack_store(make_settings([folder], "strict"), workers=1)
    tolerant = make_settings([folder], "tolerant")
    tolerant.pack.components["web"].__dict__["max_bad_lines"] = 0.2
    report = pack_store(tolerant, workers=1)["web"]
    assert (report["in"], report["kept"], report["bad_lines"]) == (63, 63, 7)
    component = tolerant.store / "web"
    found = [json.loads(line) for line in (component / "quarantine.jsonl").read_text().splitlines()]
    assert [(Path(each["file"]).name, each["line"]) for each in found] == [
        *(("a.jsonl", 10 * number + 6) for number in range(5)),
        ("b.parquet", 1),
        ("c.csv", 3),
    ]
    assert "invalid UTF-8" in found[5]["reason"] and found[1]["excerpt"] == BAD[1]
    assert verify_component(component, workers=1)[0] == []
    assert recheck_component(tolerant, "web", 2, 1)[0] == []
    few = make_settings([folder], "few")
    few.pack.components["web"].__dict__["max_bad_lines"] = 0.09
    with pytest.raises(
        UserError, match=r"7 of 70 records are unusable \(10\.00%\), more than max_bad_lines allows"
    ):
        pack_store(few, workers=1)
    few.pack.components["web"].__dict__["max_bad_lines"] = 0.1
    assert pack_store(few, workers=1)["web"]["bad_lines"] == 7, "goes on where it was"


def test_many_small_files_share_batches_and_keep_their_names(
    tmp_path: Path, make_settings: MakeSettings
) -> None:
    for number in range(30):
        folder = tmp_path / "raw" / ("eng_Latn" if number % 2 else "fra_Latn")
        folder.mkdir(parents=True, exist_ok=True)
        name = "validation" if number % 3 == 0 else "part"
        end = "" if number % 5 else "\n"
        (folder / f"{name}-{number:02d}.jsonl").write_text(
            f'{{"text": "one {number}"}}\n{{"text": "two {number}"}}{end}'
        )
    settings = make_settings([tmp_path / "raw"])
    assert pack_store(settings, workers=1)["web"]["kept"] == 60
    component = open_component(settings.store / "web")
    rows = [
        row
        for shard in component.shards
        for batch in shard.documents(["document_id", "language", "split", "source"])
        for row in batch.to_pylist()
    ]
    for row in rows:
        name, _, place = row["document_id"].partition("@")
        number = int(name[-8:-6])
        assert row["language"] == row["source"] == ("eng_Latn" if number % 2 else "fra_Latn")
        assert row["split"] == ("validation" if number % 3 == 0 else "train")
        assert int(place) in (0, len(f'{{"text": "one {number}"}}\n'))
    assert len({row["document_id"] for row in rows}) == 60
    assert recheck_component(settings, "web", 3, 1)[0] == []


def test_unknown_tokens_are_counted_by_language_and_limited(
    tmp_path: Path, make_settings: MakeSettings
) -> None:
    from dataclasses import replace

    from emma.recipes.schema.model import Tokenizer
    from emma.tools.pack.tokenizer_file import TokenizerFile
    from tests.tokenizer_styles import STYLES, write_style

    style = STYLES["wordpiece"]
    write_style(tmp_path / "wordpiece", "wordpiece")
    tokenizer = TokenizerFile(
        Tokenizer(path=str(tmp_path / "wordpiece"), begin_of_text=style.begin, end_of_text=style.end), 500
    )
    for language, text in (
        ("eng_Latn", "the river rises in the mountains " * 20),
        ("kat_Geor", "მდინარე river"),
    ):
        path = tmp_path / "raw" / language / "a.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"text": text}) + "\n")
    settings = replace(make_settings([tmp_path / "raw"]), tokenizer=tokenizer)
    with pytest.raises(
        UserError, match=r"lacks too much of 1 languages: .* kat_Geor \d+\.\d%; data\.pack\.max_unknown"
    ):
        pack_store(settings, workers=1)
    settings.pack.__dict__["max_unknown"] = 0.5
    report = pack_store(settings, workers=1)["web"]
    assert list(report["unknown_tokens"]) == ["kat_Geor"] and report["unknown_tokens"]["kat_Geor"] >= 1
    assert verify_component(settings.store / "web", workers=1)[0] == []
