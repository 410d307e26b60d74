"""The reader of the Universal Declaration's pages."""

from pathlib import Path

from benchmarks.demo_text.udhr import align, read_declaration

PAGE = """<!doctype html>
<html data-code="xx1" data-iso6393="xxx" dir="ltr" lang="{tag}">
  <head><title>Some language</title></head>
  <body><h1>Title</h1>
    <header><h2>Preamble</h2><p>{preamble}</p></header>
    <article data-number="1"><h2>Article 1</h2><p>{first}</p></article>
    <article data-number="2"><h2>Article 2</h2><ol><li>{a}</li><li>{b}</li></ol></article>
  </body></html>
"""


def declaration(folder: Path, code: str, **texts: str) -> None:
    page = PAGE.format(**{"tag": "xx", "preamble": "P", "first": "F", "a": "A", "b": "B", **texts})
    (folder / "declaration").mkdir(exist_ok=True)
    (folder / "declaration" / f"{code}.html").write_bytes(page.encode())


def test_pages_without_a_charset_are_utf8(tmp_path: Path) -> None:
    declaration(tmp_path, "yor", tag="yo", first="Ẹnì kọ̀ọ̀kan &amp; 人人生而自由")
    found = read_declaration(tmp_path, "yor")
    assert (found.code, found.tag, found.name) == ("yor", "yo", "Some language")
    assert found.articles == {0: ("P",), 1: ("Ẹnì kọ̀ọ̀kan & 人人生而自由",), 2: ("A", "B")}


def test_articles_align_by_paragraph_or_as_a_whole(tmp_path: Path) -> None:
    declaration(tmp_path, "one", first="one", a="x", b="y")
    declaration(tmp_path, "two", first="uno", a="ics", b="")
    one, two = read_declaration(tmp_path, "one"), read_declaration(tmp_path, "two")
    assert align(one, one, [1, 2]) == [("one", "one"), ("x", "x"), ("y", "y")]
    assert align(one, two, [1, 2, 3]) == [("one", "uno"), ("x y", "ics")]
