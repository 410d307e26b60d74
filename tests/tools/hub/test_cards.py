"""Text of recipes and data shows in a card as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCardData

from emma.tools.hub.cards import markdown_address, markdown_text, render_markdown

HOSTILE = "<script>alert(1)</script> [a](javascript:x) | `b` *c* _d_\n\n# e\n---"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("emma_llama3_8b-bi 1.5", "emma_llama3_8b-bi 1.5"),
        ("<b>", "&lt;b&gt;"),
        ("a | b", "a \\| b"),
        ("[a](b)", "\\[a\\](b)"),
        ("# head", "\\# head"),
        ("1. one", "1\\. one"),
        ("- item", "\\- item"),
        ("_em_ *b* `c` ~d~ \\", "\\_em\\_ \\*b\\* \\`c\\` \\~d\\~ \\\\"),
        ("a\n\n## b\r\n| c", "a ## b \\| c"),
        (3, "3"),
    ],
)
def test_a_text_shows_as_it_is(text: object, shown: str) -> None:
    assert markdown_text(text) == shown


def test_addresses_are_of_the_web() -> None:
    assert markdown_address("https://a.b/c?d=e&f#g") == "https://a.b/c?d=e&f#g"
    assert markdown_address("https://a.b/c) [x](d") == "https://a.b/c%29%20%5Bx%5D%28d"
    assert [markdown_address(url) for url in ("javascript:alert(1)", "", None)] == ["", "", ""]


def test_a_template_has_both_filters(tmp_path: Path) -> None:
    template = tmp_path / "card.md.j2"
    template.write_text("| {{ name | text }} | {{ url | address }} |\n")
    card = render_markdown(template, ModelCardData(), {}, name=HOSTILE, url="javascript:x")
    row = card.rpartition("---\n\n")[2]
    assert row.count("\n") == 1 and "<" not in row and row.replace("\\|", "").count("|") == 3


@pytest.mark.parametrize(
    "name", ["checkpoints_conversion/release/card.md.j2", "tools/corpus/release/dataset_card.md.j2"]
)
def test_what_recipes_name_freely_passes_the_filter(name: str) -> None:
    """Descriptions, names of sources, licences and languages, and addresses."""
    text = (Path(__file__).parents[3] / name).read_text()
    for words in ("recipe.description", "row.source", "row.license", "licence", "row.name", "url", "row.url"):
        for place in re.split(r"\{\{ " + re.escape(words) + r"(?=\W)", text)[1:]:
            assert place.startswith((" | text", " | address")), f"{name}: {words}{place[:40]}"
