"""The other sources of the demo's text: help pages, message catalogues, papers, questions, speeches."""

import struct
from pathlib import Path

from benchmarks.demo_text import english, gnome_help, iso_codes, papers, questions, source_code

HELP = """<page xmlns="http://projectmallard.org/1.0/" type="topic" id="clock">
  <info><link type="guide" xref="x"/><desc>{desc}</desc><title type="link">Short</title>
    <credit type="author"><name>Somebody</name></credit></info>
  <title>{title}</title>
  <steps><item><p>Click <gui>Settings</gui>
     now.</p></item></steps>
</page>
"""


def test_help_pages_give_blocks_without_credits(tmp_path: Path) -> None:
    for locale, title in (("C", "Clock"), ("de", "Uhr")):
        folder = tmp_path / "usr/share/help" / locale / "gnome-help"
        folder.mkdir(parents=True)
        (folder / "clock.page").write_text(HELP.format(desc="About", title=title), "utf-8")
    left, right = (gnome_help.read_page(tmp_path, locale, "clock") for locale in ("C", "de"))
    assert gnome_help.page_names(tmp_path) == ["clock"]
    assert left == ["About", "Clock", "Click Settings now."]
    assert gnome_help.align(left, right) == [("Clock", "Uhr")]
    assert gnome_help.align(left, right[:2]) == []
    assert gnome_help.read_page(tmp_path, "fr", "clock") == []


def catalogue(messages: dict[str, str]) -> bytes:
    """A gettext .mo file."""
    entries = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    keys = [key.encode() for key, _ in entries]
    values = [value.encode() for _, value in entries]
    offset, tables, blob = 28 + 16 * len(entries), [], b""
    for texts in (keys, values):
        for text in texts:
            tables.append((len(text), offset + len(blob)))
            blob += text + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(entries), 28, 28 + 8 * len(entries), 0, 0)
    return header + b"".join(struct.pack("<2I", *row) for row in tables) + blob


def test_messages_of_all_domains_sorted_and_translated_only(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/locale/cy/LC_MESSAGES"
    folder.mkdir(parents=True)
    (folder / "iso_3166-1.mo").write_bytes(catalogue({"Wales": "Cymru", "Oman": "Oman"}))
    (folder / "iso_4217.mo").write_bytes(catalogue({"Pound": "Punt"}))
    assert iso_codes.read_messages(tmp_path, "cy") == [("Pound", "Punt"), ("Wales", "Cymru")]


def test_papers_are_cut_into_sections_without_code(tmp_path: Path) -> None:
    path = tmp_path / "paper.Rnw"
    prose = "We estimate the {nested} model. " * 30
    path.write_text(
        "\\title{On \\pkg{zoo}:\\\\ a paper}\n\\Abstract{" + prose + "}\n\\begin{document}\n"
        "% a comment\n\\section{First}\n" + prose + "50\\% of it.\n<<chunk>>=\nx <- 1\n@\n"
        "\\section{Tiny}\nShort.\n\\bibliography{zoo}\n\\end{document}\n"
    )
    sections = papers.read_sections(path)
    assert len(sections) == 2
    assert all(section.startswith("\\title{On \\pkg{zoo}: a paper}\n\n") for section in sections)
    assert "\\begin{abstract}" in sections[0]
    assert "50\\% of it." in sections[1]
    assert "x <- 1" not in sections[1] and "comment" not in sections[1]


def test_questions_of_a_docbook_page(tmp_path: Path) -> None:
    (tmp_path / "kernel.ja.html").write_text(
        "<html><body><table><tr><th>nav</th></tr></table><h1>第10章</h1>"
        "<h2><a id='x'></a>10.1. できますか?</h2><p>\nはい。\n</p><pre>\napt-get  install\n</pre>"
        "<h2>10.2. A statement</h2><p>No question.</p></body></html>",
        "utf-8",
    )
    assert questions.read_debian_faq(tmp_path) == [("できますか?", "はい。\n\napt-get  install")]


def test_questions_of_perlfaq(tmp_path: Path) -> None:
    path = tmp_path / "perlfaq4.pod"
    path.write_text(
        '=head1 NAME\n\nperlfaq4\n\n=head2 Why is C<int()> broken?\n\nSee L<perlop/"Numbers"> and '
        "C<< $a->{x} >>: E<lt>b.\n\n    print 1;\n\n=over 4\n\n=item *\n\nOne\n\n=back\n\n=head1 AUTHOR\n\nTom\n"
    )
    assert questions.read_perlfaq(path) == [
        ("Why is int() broken?", 'See perlop/"Numbers" and $a->{x}: <b.\n\n    print 1;\n\nOne')
    ]


def test_questions_of_pythons_faq(tmp_path: Path) -> None:
    path = tmp_path / "design.rst.txt"
    path.write_text(
        "==========\nDesign FAQ\n==========\n\nWhy does :func:`len` exist?\n---------------------------\n\n"
        "See `the docs <https://example.org>`_ and :mod:`pdb <x>`.\n\n.. _label:\n\nNext chapter\n============\n\n"
        "Not an answer.\n"
    )
    assert questions.read_python_faq(path) == [("Why does :func:`len` exist?", "See the docs and pdb.")]


def test_passages_end_with_sentences() -> None:
    assert english.passages("One two. Three four! Five?", 16) == [
        "One two.",
        "Three four!",
        "Five?",
    ]
    assert english.passages("", 10) == []


def test_source_files_by_pattern(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "a.txt", "sub/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = source_code.read_files(tmp_path, ["*.py", "sub/*.py", "a.*"])
    assert found == [("a.py", "a.py"), ("a.txt", "a.txt"), ("b.py", "b.py"), ("sub/c.py", "sub/c.py")]
