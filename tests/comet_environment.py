"""Brings COMET into an environment that shares torch with this one (`make test-comet`).

unbabel-comet wants numpy 1, transformers 4 and huggingface_hub 0, which this project's other packages exclude; torch,
whose builds for CPUs are not in every index, is shared.

    python -P -m tests.comet_environment FOLDER
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

VERSION = "2.2.7"


def main(folder: Path) -> None:
    """Makes the environment, or mends one that is not whole."""
    venv.create(folder, with_pip=True)
    packages = next(folder.glob("lib/python3.*/site-packages"))
    shared = Path(str(importlib.metadata.distribution("torch").locate_file("")))
    (packages / "shared.pth").write_text(f"{shared}\n")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torchmetrics 0.10, which COMET pins, imports pkg_resources without asking for it; setuptools 81 took it away.
    needed = [f"unbabel-comet=={VERSION}", "setuptools<81"]
    subprocess.run([*pip, "--no-warn-conflicts", *needed], check=True)
    (folder / ".ready").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
