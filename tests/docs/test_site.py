"""The site that `make docs` builds: complete, searchable, and read without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

# What a browser fetches by itself, unlike the target of a link.
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\"\s>]+)|<link\b[^>]*\bhref=\"?([^\"\s>]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    pytest.importorskip("mkdocstrings", reason="needs the docs extra")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-P", "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert built.returncode == 0, built.stdout
    return folder


@pytest.mark.slow
def test_guides_and_functions_are_found_by_the_search(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"] for entry in index["docs"]}
    assert {"mix/#concatenate-or-best-fit", "where/", "CONTRIBUTING/#adding-a-language"} <= places
    assert "api/emma.tools.mix/#emma.tools.mix.plan.water_fill" in places
    assert "api/emma.checkpoints_conversion.parity/#emma.checkpoints_conversion.parity.compare" in places


@pytest.mark.slow
def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    fetched = {
        address
        for page in pages
        for pair in _FETCHED.findall(page.read_text(encoding="utf-8"))
        for address in pair
        if address.startswith(("http:", "https:", "//"))
    }
    assert fetched == set()
