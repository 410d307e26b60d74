"""Text of recipes and data is no markup on a page."""

from __future__ import annotations

from pathlib import Path

from emma.recipes.load import load_recipe
from tests.command_line import emma
from tests.tools.report.sample_run import codes, sample_recipe, write_metrics, write_plan, write_start

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(2)>_Latn"


def test_a_page_shows_hostile_text_as_text(tmp_path: Path) -> None:
    sample_recipe(tmp_path)
    recipe = load_recipe(tmp_path / "sample.yaml", [f"description='{SCRIPT}'"])
    run = write_start(recipe)
    write_metrics(recipe)
    write_plan(recipe, [*codes(4), IMAGE])
    answer = emma("report", "run", str(run), "--output", str(tmp_path / "page.html"))
    assert answer.code == 0, answer.err
    page = (tmp_path / "page.html").read_text()
    assert "alert(1)" in page and "onerror=alert(2)" in page, "it is shown"
    assert SCRIPT not in page and IMAGE not in page
    atlas = (tmp_path / "page.atlas.html").read_text()
    assert "onerror=alert(2)" in atlas and IMAGE not in atlas
