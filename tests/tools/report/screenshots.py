"""Takes the pictures of the atlas that docs/report.md shows, from the published results of EMMA-500.

python -P -m tests.tools.report.screenshots docs/images
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from click.testing import CliRunner

from emma.commands.report import group
from tests.browser import DESK, PHONE, chromium, opened
from tests.tools.report.published_run import write_published_run

MEASURE = "Belebele, accuracy"


def main(folder: Path) -> None:
    """Writes `atlas-desktop.png`, `atlas-phone.png` and `atlas-language.png`."""
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        recipe = write_published_run(Path(name))
        CliRunner().invoke(group, ["run", str(recipe.run_folder)], catch_exceptions=False)
        page_file = recipe.run_folder / "report" / "atlas.html"
        for size, label in ((DESK, "desktop"), (PHONE, "phone")):
            with opened(browser, page_file, size) as page:
                page.select_option("#measure", label=MEASURE)
                page.click("#tree summary >> nth=0") if label == "desktop" else None
                page.screenshot(path=folder / f"atlas-{label}.png")
        with opened(browser, page_file, DESK, anchor="#yor_Latn") as page:
            page.screenshot(path=folder / "atlas-language.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
