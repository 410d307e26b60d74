"""Links within the documentation lead to files and headings that exist."""

from __future__ import annotations

import os.path
from pathlib import PurePosixPath

import pytest

from tests.docs.markdown import PAGES, ROOT, anchors, links


def broken(page: str, target: str) -> str | None:
    """Why a link on a page leads nowhere; None if it leads somewhere, or out of the repository."""
    if target.startswith(("https://", "http://", "mailto:")):
        return None
    path, _, anchor = target.partition("#")
    aim = os.path.normpath(PurePosixPath(page).parent / path) if path else page
    if not (ROOT / aim).exists():
        return f"{page}: {target}: no such file"
    if anchor and anchor not in anchors(aim):
        return f"{page}: {target}: no such heading"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert [fault for target in links(page) if (fault := broken(page, target))] == []


def test_a_broken_link_is_found() -> None:
    assert broken("docs/report.md", "evaluate.md#averages-tests-and-intervals") is None
    assert broken("docs/report.md", "evaluate.md#no-such-heading") is not None
    assert broken("docs/report.md", "no-such-page.md") is not None
    assert broken("README.md", "docs/images/no-such-image.png") is not None


def test_links_are_found() -> None:
    assert "docs/images/demo-report.png" in links("README.md")
    assert "images/compare-phone.png" in links("docs/report.md")
    assert len(links("README.md")) >= 15


def test_every_guide_is_among_the_pages() -> None:
    guides = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert guides - {"docs/index.md"} <= set(PAGES)
