from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pydantic import ValidationError

from emma.base.errors import UserError
from emma.recipes.load import load_recipe
from emma.recipes.schema.corpus import Corpus, Source
from emma.tools.corpus.build import build_corpus, plan_build, stages_of
from emma.tools.corpus.source_files import SourceFile, source_files
from tests.tools.corpus.raw_text import rows_of
from tests.tools.corpus.test_build import mixed_build


def found(**settings: Any) -> list[SourceFile]:
    """Files of one source."""
    settings.setdefault("kind", "monolingual")
    return source_files(Corpus(sources={"source": Source(license="CC0-1.0", **settings)}))


def touch(folder: Path, *names: str) -> None:
    """Empty files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_language_in_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "pt-br.jsonl.gz", "zho_Hans.jsonl.gz", "en.txt", ".hidden.jsonl.gz")
    files = found(path=f"{tmp_path}/{{language}}.jsonl.gz")
    assert [(file.name, file.captured) for file in files] == [
        ("pt-br.jsonl.gz", {"language": "pt-br"}),
        ("zho_Hans.jsonl.gz", {"language": "zho_Hans"}),
    ]


def test_folders_and_wildcards(tmp_path: Path) -> None:
    touch(tmp_path, "a/en/1.jsonl", "a/en/2.jsonl", "b/c/de/1.jsonl", "en.jsonl")
    files = found(path=f"{tmp_path}/**/{{language}}/?.jsonl")
    assert [(file.name, file.captured["language"]) for file in files] == [
        ("a/en/1.jsonl", "en"),
        ("a/en/2.jsonl", "en"),
        ("b/c/de/1.jsonl", "de"),
    ]


def test_moses_sides(tmp_path: Path) -> None:
    touch(tmp_path, "news.de-en.de", "news.de-en.en", "web.en-pt_br.en", "web.en-pt_br.pt_br")
    files = found(
        kind="parallel",
        path=f"{tmp_path}/{{corpus}}.{{src}}-{{tgt}}.{{src}}",
        target_path=f"{tmp_path}/{{corpus}}.{{src}}-{{tgt}}.{{tgt}}",
    )
    assert [(file.captured["src"], file.captured["tgt"], Path(str(file.target)).name) for file in files] == [
        ("de", "en", "news.de-en.en"),
        ("en", "pt_br", "web.en-pt_br.pt_br"),
    ]
    (tmp_path / "news.de-en.en").unlink()
    with pytest.raises(UserError, match=r"no other side: .*news\.de-en\.en does not exist"):
        found(
            kind="parallel",
            path=f"{tmp_path}/{{corpus}}.{{src}}-{{tgt}}.{{src}}",
            target_path=f"{tmp_path}/{{corpus}}.{{src}}-{{tgt}}.{{tgt}}",
        )


def test_relative_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "raw/en.txt", "fr.txt")
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in found(path="*.txt", language="fr")] == ["fr.txt"]
    assert [file.path for file in found(path="raw/{language}.txt")] == ["raw/en.txt"]
    assert [file.name for file in found(path="raw/en.txt", language="en")] == ["en.txt"]


def test_shipped_text_is_found_outside_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = load_recipe("demo").data.corpus
    files = source_files(corpus)
    assert {file.source for file in files} == set(corpus.sources)
    assert [file.name for file in files if file.source == "udhr"] == ["udhr.jsonl.zst"]
    pages = [file for file in files if file.source == "gnome-help-pairs"]
    assert len(pages) == 8
    assert all(Path(file.path).is_file() and Path(str(file.target)).is_file() for file in pages)
    assert pages[0].name == "gnome-help.de-fr.de.gz"


def test_the_working_folder_comes_before_the_shipped_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "recipes/data/demo_text/monolingual/udhr.jsonl.zst")
    monkeypatch.chdir(tmp_path)
    path = "recipes/data/demo_text/monolingual/udhr.jsonl.zst"
    assert [file.path for file in found(path=path, language="en")] == [path]


def test_no_file_and_no_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.corpus\.sources\.source\.path: no file matches"):
        found(path=f"{tmp_path}/*.jsonl", language="en")
    with pytest.raises(UserError, match="nothing to build"):
        source_files(Corpus())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "a.jsonl"}, "names no language"),
        ({"path": "{language}.jsonl", "language": "en"}, "more than once"),
        ({"path": "a.xyz", "language": "en"}, "cannot be told from its ending"),
        ({"path": "a.tmx", "language": "en"}, "kind: parallel"),
        ({"path": "a.txt", "language_column": "lang"}, "no columns"),
        ({"path": "a.jsonl", "kind": "parallel", "src_lang": "en"}, "tgt_lang"),
        (
            {"path": "a.de", "kind": "parallel", "src_lang": "de", "tgt_lang": "en", "format": "moses"},
            "target_path",
        ),
        (
            {"path": "a.{src}", "target_path": "a.{other}", "kind": "parallel", "tgt_lang": "en"},
            "{other}, which path does not capture",
        ),
    ],
)
def test_sources_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    settings.setdefault("kind", "monolingual")
    with pytest.raises(ValidationError, match=message):
        Source(license="CC0-1.0", **settings)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_sources_on_an_object_store(scheme: str, tmp_path: Path) -> None:
    """The same rows as from the working folder, whatever the format and compression."""
    here = mixed_build(tmp_path, tmp_path / "here")
    address = f"memory://{tmp_path.name}" if scheme == "memory" else f"file://{tmp_path}"
    store, _ = fsspec.core.url_to_fs(address)
    (tmp_path / ".hidden.jsonl").write_text("not read")
    if scheme == "memory":
        for path in tmp_path.rglob("*"):
            if path.is_file() and "here" not in path.parts:
                store.pipe(f"/{tmp_path.name}/{path.relative_to(tmp_path)}", path.read_bytes())

    def moved(source: Source) -> Source:
        values = {
            key: getattr(source, key).replace(str(tmp_path), address)
            for key in ("path", "target_path")
            if getattr(source, key)
        }
        return source.model_copy(update=values)

    sources = {name: moved(source) for name, source in here.corpus.sources.items()}
    there = dataclasses.replace(
        here, corpus=here.corpus.model_copy(update={"sources": sources}), root=tmp_path / "there"
    )
    build_corpus(here, "integrated")
    plan = plan_build(there)
    assert [row["bytes"] for row in plan["sources"]] == [row["bytes"] for row in plan_build(here)["sources"]]
    build_corpus(there, "integrated")
    assert rows_of(there.root, "integrated") == rows_of(here.root, "integrated")
    # A file that changes in the store is read again.
    before = next(stages_of(there)).fingerprint
    assert next(stages_of(there)).fingerprint == before
    name = f"{address}/mono.jsonl.gz"
    with fsspec.open(name, "rb") as handle:
        content = handle.read()
    with fsspec.open(name, "wb") as handle:
        handle.write(content + content)
    assert next(stages_of(there)).fingerprint != before


def test_a_store_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, message in (
        ("nowhere://bucket/x.jsonl", "nowhere"),
        ("memory://empty/{language}.jsonl", "no file matches"),
        ("file:///nowhere/x.jsonl", "no file matches"),
    ):
        with pytest.raises(UserError, match=message):
            source_files(Corpus(sources={"s": mono(path)}))


def mono(path: str) -> Source:
    where = {} if "{language}" in path else {"language": "eng"}
    return Source(kind="monolingual", path=path, license="CC0-1.0", **where)
