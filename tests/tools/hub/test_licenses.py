from __future__ import annotations

import pytest

from emma.tools.hub.licenses import hub_licenses


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["CC0-1.0"], "cc0-1.0"),
        (["CC-BY-SA-4.0", "MIT"], ["cc-by-sa-4.0", "mit"]),
        (["LGPL-2.1-or-later", "GPL-2.0-only"], ["gpl-2.0", "lgpl-2.1"]),
        (["ODC-By-1.0", "ODbL-1.0"], ["odbl", "odc-by"]),
        (["MIT OR Apache-2.0"], ["apache-2.0", "mit"]),
        (["(MIT OR GPL-3.0-or-later) AND PSF-2.0"], ["gpl-3.0", "mit", "other"]),
        (["Apache-2.0 WITH LLVM-exception"], "apache-2.0"),
        (["LicenseRef-Europarl", "terms of use"], "other"),
    ],
)
def test_identifiers_of_the_hub(names: list[str], expected: str | list[str]) -> None:
    assert hub_licenses(names) == expected
