"""Every method against mergekit, on small models: the same bits, or a stated difference.

mergekit runs in a Python of its own: the one that EMMA_MERGEKIT names, or an environment made here (that needs a package
registry).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from emma.checkpoints_conversion.merging.arithmetic import kept
from emma.checkpoints_conversion.merging.write import merge
from tests.checkpoints_conversion.merging import peer
from tests.checkpoints_conversion.merging.kin import make_kin, recipe
from tests.checkpoints_conversion.tiny_models import read_tensors

pytestmark = pytest.mark.slow

VERSION = "0.1.5"
WEIGHTS = {"one": 1.0, "two": 0.7}
DENSITY = 0.3


@pytest.fixture(scope="module")
def mergekit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has mergekit, with this environment's torch and transformers."""
    if given := os.environ.get("EMMA_MERGEKIT"):
        return given
    folder = tmp_path_factory.mktemp("mergekit")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    own = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "zz_shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(own)]
    made = subprocess.run([*pip, f"mergekit=={VERSION}", "immutables"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mergekit cannot be installed here: {made.stderr.strip()[-200:]}")
    return str(folder / "bin/python")


def _config(root: Path, method: str, *, base: str | None = "base", **shared: Any) -> dict[str, Any]:
    sparse = {"density": DENSITY} if method.startswith(("ties", "dare")) else {}
    models = [
        {"model": str(root / name), "parameters": {"weight": weight} | sparse}
        for name, weight in WEIGHTS.items()
    ]
    config = {"merge_method": method, "dtype": "float32", "parameters": shared, "models": models}
    return config if base is None else config | {"base_model": str(root / base)}


def _cases(root: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Ours and mergekit's, by name."""
    slerp = _config(root, "slerp", base="one", t=0.3)
    slerp["models"] = [{"model": str(root / name)} for name in WEIGHTS]
    return {
        "average": ({"method": "linear"}, _config(root, "linear", base=None)),
        "sum": (
            {"method": "linear", "normalize": False},
            _config(root, "linear", base=None, normalize=False),
        ),
        "task vectors": (
            {"method": "task_vector", "scale": 0.9},
            _config(root, "task_arithmetic", **{"lambda": 0.9}),
        ),
        "normalized": (
            {"method": "task_vector", "normalize": True},
            _config(root, "task_arithmetic", normalize=True),
        ),
        "TIES": ({"method": "ties", "density": DENSITY}, _config(root, "ties")),
        "TIES sum": (
            {"method": "ties", "density": DENSITY, "normalize": False, "scale": 1.3},
            _config(root, "ties", normalize=False, **{"lambda": 1.3}),
        ),
        "DARE": (
            {"method": "dare_linear", "density": DENSITY, "rescale": "none"},
            _config(root, "dare_linear", rescale=False),
        ),
        "DARE TIES": (
            {"method": "dare_ties", "density": DENSITY, "rescale": "none"},
            _config(root, "dare_ties", rescale=False),
        ),
        "DARE l1": (
            {"method": "dare_linear", "density": DENSITY, "rescale": "l1"},
            _config(root, "dare_linear"),
        ),
        "DARE TIES l1": (
            {"method": "dare_ties", "density": DENSITY, "rescale": "l1"},
            _config(root, "dare_ties"),
        ),
        "slerp": ({"method": "slerp", "t": 0.3}, slerp),
    }


# mergekit sums a whole parameter in FP32 for these, in an order that threads decide; here it is FP64.
TOLERANCES = {"DARE l1": 1e-6, "DARE TIES l1": 1e-6, "slerp": 1e-6}


def _masks(root: Path, path: Path) -> Path:
    """What DARE keeps here, under the hashes of the differences that mergekit will ask about."""
    base, masks = read_tensors(root / "base"), {}
    for number, name in enumerate(WEIGHTS):
        for parameter, tensor in read_tensors(root / name).items():
            delta = tensor.float() - base[parameter].float()
            digest = hashlib.sha256(delta.numpy().tobytes()).hexdigest()
            masks[digest] = kept(1234, number, parameter, DENSITY, 0, delta.numel()).view_as(delta)
    save_file(masks, path)
    return path


def _tied(root: Path, parameter: str) -> torch.Tensor:
    """Values that have the size of the last one that TIES keeps, of which there are many among differences of BF16 numbers:
    here all of them stay, as in the authors' code, and in mergekit as many as there is room for."""
    base = read_tensors(root / "base")[parameter].float()
    found = torch.zeros(base.shape, dtype=torch.bool)
    for name in WEIGHTS:
        sizes = (read_tensors(root / name)[parameter].float() - base).abs()
        found |= (
            sizes == sizes.flatten().sort(descending=True).values[max(1, int(DENSITY * sizes.numel())) - 1]
        )
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_bits(mergekit: str, tmp_path: Path, dtype: str) -> None:
    root = make_kin(tmp_path / "kin", dtype=dtype)
    cases = _cases(root)
    masks = _masks(root, tmp_path / "masks.safetensors")
    jobs = [
        {"config": config | {"out_dtype": dtype}, "out": str(tmp_path / "theirs" / name), "masks": str(masks)}
        for name, (_, config) in cases.items()
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    subprocess.run([mergekit, peer.__file__, str(tmp_path / "jobs.json")], check=True)
    (tmp_path / "ours").mkdir()
    for name, (own, _) in cases.items():
        merge(recipe(root, **own), tmp_path / "ours" / name)
        ours, theirs = (read_tensors(tmp_path / side / name) for side in ("ours", "theirs"))
        assert ours.keys() == theirs.keys()
        for parameter, tensor in ours.items():
            other = theirs[parameter]
            assert tensor.dtype == other.dtype == getattr(torch, dtype)
            if name in TOLERANCES:
                assert torch.allclose(
                    tensor.float(), other.float(), rtol=2**-7 if dtype != "float32" else 0, atol=1e-6
                )
                continue
            unlike = tensor != other
            if name.startswith("TIES"):
                unlike &= ~_tied(root, parameter)
            assert not bool(unlike.any()), (name, parameter, int(unlike.sum()))
