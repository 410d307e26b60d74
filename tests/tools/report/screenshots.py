"""Takes the pictures of the atlas that docs/report.md shows, from the published results of EMMA-500.

python -P -m tests.tools.report.screenshots docs/images
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from PIL import Image

from emma.commands.report import group
from tests.browser import PHONE, chromium, opened
from tests.tools.report.published_run import write_published_run

MEASURE = "Belebele, accuracy"
LARGEST = 150_000


def main(folder: Path) -> None:
    """Writes `atlas-desktop.png`, `atlas-phone.png` and `atlas-language.png`."""
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        recipe = write_published_run(Path(name))
        CliRunner().invoke(group, ["run", str(recipe.run_folder)], catch_exceptions=False)
        file = recipe.run_folder / "report" / "atlas.html"
        with opened(browser, file, (1280, 1360)) as page:
            page.select_option("#measure", label=MEASURE)
            page.click("#tree summary >> nth=2")
            page.evaluate("scrollTo(0, 0)")
            _take(page, folder / "atlas-desktop.png")
        with opened(browser, file, (390, 1360)) as page:
            page.select_option("#measure", label=MEASURE)
            _take(page, folder / "atlas-phone.png")
        with opened(browser, file, PHONE, anchor="#yor_Latn") as page:
            _take(page, folder / "atlas-language.png")


def _take(page: Any, file: Path) -> None:
    """A picture of the window, with few colours, as small files need."""
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(
        file, optimize=True
    )
    assert file.stat().st_size < LARGEST, file


if __name__ == "__main__":
    main(Path(sys.argv[1]))
