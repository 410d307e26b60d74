"""Search and filters of the language tables, in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from emma.tools.report.page import run_page
from emma.tools.report.records import read_run
from tests.tools.report.sample_run import write_benchmarks, write_run

CHROMIUM = shutil.which("chromium")

_PROBE = """<script>
const found = {}, table = document.querySelector("table.filtered"), box = document.querySelector(".filter");
const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
const set = (field, value) => { field.value = value; field.dispatchEvent(new Event("input", {bubbles: true})); };
const input = box.querySelector("input"), selects = Object.fromEntries(
  [...box.querySelectorAll("select")].map((choice) => [choice.getAttribute("aria-label"), choice]));
found.all = shown().length;
for (const text of ["yoruba", "YOR_", "Yorùbá", "no such"]) { set(input, text); found[text] = shown(); }
found.count = box.querySelector("output").textContent;
set(input, "");
set(selects.script, "Cyrl"); found.cyrillic = shown(); set(selects.script, "*");
set(selects.category, "high"); found.high = shown(); set(input, "german"); found.both = shown();
found.choices = Object.keys(selects);
found.tables = [document.querySelectorAll("table.filtered").length, document.querySelectorAll(".filter").length];
document.body.dataset.found = JSON.stringify(found);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_languages_are_found_by_name_and_code_and_filtered(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    write_benchmarks(recipe)
    page = tmp_path / "page.html"
    page.write_text(run_page(read_run(recipe.run_folder)) + _PROBE, encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    command[1:1] = [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.search(r'data-found="([^"]*)"', dumped)
    assert match, dumped[-2000:]
    found = json.loads(html.unescape(match[1]))
    (yoruba,) = found["yoruba"]
    assert yoruba.split() == ["yor_Latn", "Yoruba"]
    assert found["YOR_"] == found["Yorùbá"] == [yoruba]
    assert found["no such"] == []
    assert found["count"] == f"0 of {found['all']}"
    assert [text.split()[0] for text in found["cyrillic"]] == ["rus_Cyrl"]
    assert 0 < len(found["high"]) < found["all"]
    assert [text.split()[0] for text in found["both"]] == ["deu_Latn"]
    assert {"category", "script"} <= set(found["choices"])
    assert found["tables"][0] == found["tables"][1] >= 3
