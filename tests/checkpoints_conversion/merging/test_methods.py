"""What merges compute: against the formulas written down once more for whole tensors, in every format."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emma.base.manifest import Manifest
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from emma.checkpoints_conversion.huggingface_weights import HuggingFaceWeights
from emma.checkpoints_conversion.merging import arithmetic, merged
from emma.checkpoints_conversion.merging.again import prove
from emma.checkpoints_conversion.merging.coefficients import coefficients
from emma.checkpoints_conversion.merging.parents import open_family
from emma.checkpoints_conversion.merging.statistics import trim_threshold
from emma.checkpoints_conversion.merging.write import merge
from tests.checkpoints_conversion import families
from tests.checkpoints_conversion.merging.kin import descend, make_kin, recipe
from tests.checkpoints_conversion.tiny_models import read_tensors, same_bits

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def kin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kin(tmp_path_factory.mktemp("kin"))


def _sparse(method: str, number: int, name: str, delta: torch.Tensor, values: dict[str, Any]) -> torch.Tensor:
    density = values.get("density", 1.0)
    if method == "ties":
        least = delta.abs().flatten().sort(descending=True).values[max(1, int(density * delta.numel())) - 1]
        return torch.where(delta.abs() >= least, delta, 0.0)
    if method.startswith("dare"):
        mask = arithmetic.kept(values.get("seed", 1234), number, name, density, 0, delta.numel())
        left = torch.where(mask.view_as(delta), delta, 0.0)
        rescale = values.get("rescale", "density")
        if rescale == "l1":
            return left * (delta.abs().sum() / left.abs().sum())
        return left / density if rescale == "density" else left
    return delta


def expected(method: str, models: list[Tensors], base: Tensors, values: dict[str, Any]) -> Tensors:
    """In FP64, from the papers' formulas."""
    result = {}
    weights = [1.0, 0.7]
    for name in models[0]:
        parts = [model[name].double() for model in models]
        if method == "linear":
            total = sum(w * part for w, part in zip(weights, parts, strict=True))
            result[name] = total / sum(weights) if values.get("normalize", True) else total
        elif method == "slerp":
            a, b = parts
            angle = torch.acos((a * b).sum() / a.norm() / b.norm())
            t = values["t"]
            result[name] = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
        else:
            origin = base[name].double()
            deltas = [
                w * _sparse(method, number, name, part - origin, values)
                for number, (w, part) in enumerate(zip(weights, parts, strict=True))
            ]
            sign = torch.where(sum(deltas) >= 0, 1.0, -1.0)
            counts = [torch.ones_like(origin) for _ in deltas]
            if method in ("ties", "dare_ties"):
                counts = [(delta.sign() == sign).double() for delta in deltas]
            mixed = sum(delta * count for delta, count in zip(deltas, counts, strict=True))
            if values.get("normalize", method == "ties"):
                divisor = sum(w * count for w, count in zip(weights, counts, strict=True))
                mixed = mixed / torch.where(divisor == 0, 1.0, divisor)
            result[name] = origin + values.get("scale", 1.0) * mixed
    return result


CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("linear", {"normalize": False}),
    ("slerp", {"t": 0.3}),
    ("task_vector", {}),
    ("task_vector", {"normalize": True, "scale": 0.5}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.3, "normalize": False, "scale": 1.3}),
    ("dare_linear", {"density": 0.4}),
    ("dare_linear", {"density": 0.4, "rescale": "l1"}),
    ("dare_ties", {"density": 0.4, "rescale": "none", "seed": 7}),
]


@pytest.mark.parametrize(("method", "values"), CASES, ids=[f"{m} {v}" for m, v in CASES])
def test_formulas(kin: Path, tmp_path: Path, method: str, values: dict[str, Any]) -> None:
    merge(recipe(kin, method, **values), tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    models = [read_tensors(kin / name) for name in ("one", "two")]
    wanted = expected(method, models, read_tensors(kin / "base"), values)
    for name, tensor in found.items():
        # Where an FP32 sum of differences is next to zero, its sign, and with it what counts, may be the other one.
        unlike = (tensor - wanted[name].float()).abs() > 2e-6
        assert int(unlike.sum()) <= (tensor.numel() // 2000 if "ties" in method else 0), name
    assert found.keys() == models[0].keys()
    assert prove(tmp_path / "out", logits=False).passed


def test_neither_threads_nor_files_nor_blocks_change_a_bit(
    kin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method, values in (CASES[number] for number in (0, 2, 5, 8)):
        outs = []
        for number, (shard, threads, block) in enumerate(
            [(10**9, 1, 1 << 20), (50_000, 4, 1003), (10**5, 2, 251)]
        ):
            monkeypatch.setattr(merged, "_BLOCK", block)
            out = tmp_path / f"{method}-{number}"
            merge(recipe(kin, method, **values), out, shard_bytes=shard, threads=threads, overwrite=True)
            outs.append(read_tensors(out))
        assert same_bits(outs[0], outs[1]) and same_bits(outs[0], outs[2]), (method, values)


def test_rows_that_are_read_out_of_order_are_hashed_in_order(kin: Path) -> None:
    one, other = (merged.MergedWeights(open_family(recipe(kin, "task_vector"))) for _ in range(2))
    for rows in ((100, 50), (0, 30), (10, 40), (30, 20)):
        with one.open("model.embed_tokens.weight", rows):
            pass
    one.finish()
    other.finish()
    assert one.digests() == other.digests()
    assert one.distances() == pytest.approx(other.distances())


def test_each_row_leaves_the_page_cache_once_and_after_its_last_use(
    kin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: dict[tuple[str, str], list[tuple[str, int, int]]] = {}

    def note(what: str, weights: HuggingFaceWeights, name: str, rows: Any) -> None:
        places.setdefault((weights.folder.name, name), []).append((what, *(rows or (0, 1))))

    opened, forgotten = HuggingFaceWeights.open, HuggingFaceWeights.forget
    monkeypatch.setattr(merged, "_BLOCK", 1003)
    monkeypatch.setattr(HuggingFaceWeights, "open", lambda *all: (note("open", *all), opened(*all))[1])
    monkeypatch.setattr(HuggingFaceWeights, "forget", lambda *all: (note("forget", *all), forgotten(*all))[1])
    merge(recipe(kin, "ties", density=0.5), tmp_path / "out")
    sizes = merged.MergedWeights(open_family(recipe(kin, "ties", density=0.5))).sizes
    assert places.keys() == {(model, name) for model in ("base", "one", "two") for name in sizes}
    for (_, name), events in places.items():
        covered: list[int] = []
        for what, first, count in events:
            if what == "forget":
                covered += range(first, first + count)
            else:
                assert not set(covered) & set(range(first, first + count)), name
        assert covered == list(range((sizes[name] or (1,))[0])), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_megatron_checkpoints_give_the_same_bits(tmp_path: Path, dtype: str) -> None:
    kin = make_kin(tmp_path / "hf", dtype=dtype)
    for name in ("base", "one", "two"):
        hf_to_megatron.convert(kin / name, tmp_path / "megatron" / name)
    for method, values in (("linear", {}), ("ties", {"density": 0.3}), ("dare_linear", {"density": 0.4})):
        merge(recipe(kin, method, **values), tmp_path / "a", overwrite=True)
        manifest = merge(recipe(tmp_path / "megatron", method, **values), tmp_path / "b", overwrite=True)
        assert manifest.extra["format"] == "megatron"
        assert manifest.extra["dtype"] == dtype
        megatron_to_hf.convert(tmp_path / "b", tmp_path / "c", overwrite=True)
        assert same_bits(read_tensors(tmp_path / "a"), read_tensors(tmp_path / "c"))
        assert prove(tmp_path / "b").passed
    # In any combination, and in either format.
    mixed = recipe(kin, "linear", format="megatron").model_copy(
        update={
            "models": [recipe(kin, "linear").models[0], recipe(tmp_path / "megatron", "linear").models[1]]
        }
    )
    merge(mixed, tmp_path / "d")
    megatron_to_hf.convert(tmp_path / "d", tmp_path / "e")
    merge(recipe(kin, "linear"), tmp_path / "a", overwrite=True)
    assert same_bits(read_tensors(tmp_path / "a"), read_tensors(tmp_path / "e"))


def test_steps_of_a_run(tmp_path: Path) -> None:
    kin = make_kin(tmp_path / "hf")
    run = tmp_path / "run"
    for step, name in ((100, "base"), (200, "one"), (300, "two")):
        hf_to_megatron.convert(kin / name, tmp_path / "x", overwrite=True)
        shutil.copytree(tmp_path / "x/iter_0000000", run / f"checkpoints/iter_{step:07d}")
    models = [{"path": str(run), "steps": [300, 100, 200]}]
    parts = [read_tensors(kin / name) for name in ("base", "one", "two")]
    weights = {"uniform": [1 / 3, 1 / 3, 1 / 3], "ema": [0.25, 0.25, 0.5]}
    for average, factors in weights.items():
        extra = {"ema_decay": 0.5} if average == "ema" else {}
        manifest = merge(recipe(kin, "linear", models=models, average=average, **extra), tmp_path / average)
        assert [parent["name"] for parent in manifest.extra["parents"]] == ["run@100", "run@200", "run@300"]
        assert [parent["weight"] for parent in manifest.extra["parents"]] == pytest.approx(factors)
        megatron_to_hf.convert(tmp_path / average, tmp_path / "out", overwrite=True)
        for name, tensor in read_tensors(tmp_path / "out").items():
            wanted = sum(w * part[name].double() for w, part in zip(factors, parts, strict=True))
            assert float((tensor - wanted).abs().max()) < 1e-6
    # Uniform weights are what the export's own average is.
    merge(recipe(kin, "linear", models=models), tmp_path / "plain")
    megatron_to_hf.convert(run, tmp_path / "mean", average=(100, 200, 300))
    megatron_to_hf.convert(tmp_path / "plain", tmp_path / "out", overwrite=True)
    assert same_bits(read_tensors(tmp_path / "mean"), read_tensors(tmp_path / "out"))


@pytest.mark.parametrize("case", families.CASES)
def test_every_architecture(case: str, tmp_path: Path) -> None:
    families.save(case, tmp_path / "base")
    for seed, name in enumerate(("one", "two"), start=1):
        descend(tmp_path / "base", tmp_path / name, seed, 0.05)
    merge(recipe(tmp_path, "task_vector"), tmp_path / "out")
    models = [read_tensors(tmp_path / name) for name in ("base", "one", "two")]
    for name, tensor in read_tensors(tmp_path / "out").items():
        base, one, two = (model[name].double() for model in models)
        assert torch.allclose(tensor.double(), one + 0.7 * (two - base), atol=1e-5), name
    assert prove(tmp_path / "out", logits=False).passed


def test_weights_of_checkpoints() -> None:
    steps = [100, 200, 300, 400]
    for kind in ("uniform", "linear", "1-sqrt", "cosine"):
        found = coefficients(kind, steps)
        assert sum(found) == pytest.approx(1) and min(found) > 0
    # The linear decay is the uniform average; others keep what their decay leaves (arXiv 2507.17634).
    assert coefficients("linear", steps) == pytest.approx(coefficients("uniform", steps))
    assert coefficients("1-sqrt", steps)[0] == pytest.approx(math.sqrt(0.25))
    assert coefficients("1-sqrt", steps)[3] == pytest.approx(1 - math.sqrt(0.75))
    assert coefficients("cosine", steps)[3] == pytest.approx((1 + math.cos(0.75 * math.pi)) / 2)
    # Updates of 1 a step: the average lies where the decayed updates would have led.
    uneven = [100, 200, 400]
    where = sum(c * step for c, step in zip(coefficients("1-sqrt", uneven), uneven, strict=True))
    left = [1 - math.sqrt((step - 100) / 450) for step in uneven]
    assert where == pytest.approx(100 + 100 * left[1] + 200 * left[2])
    mean = 0.0
    for number, value in enumerate((3.0, 5.0, 11.0)):
        mean = value if number == 0 else 0.9 * mean + 0.1 * value
    found = coefficients("ema", [1, 2, 3], 0.9)
    assert sum(c * v for c, v in zip(found, (3.0, 5.0, 11.0), strict=True)) == pytest.approx(mean)


def test_threshold_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    for size, digits in itertools.product((1, 7, 1000), (2, 9)):
        values = (torch.randn(size, generator=generator) * 10**digits).round() / 10**digits
        values[: size // 4] = 0
        for keep in {1, size // 3 + 1, size}:
            blocks = [(0, values[:3]), (3, values[3:])]
            found = trim_threshold(lambda blocks=blocks: iter(blocks), keep)  # type: ignore[misc]
            wanted = values.abs().sort(descending=True).values[keep - 1]
            assert np.int32(found).view(np.float32) == wanted.item()


def test_masks_are_where_they_are() -> None:
    whole = arithmetic.kept(3, 1, "a", 0.3, 0, 5000)
    assert float(whole.float().mean()) == pytest.approx(0.3, abs=0.03)
    for first, count in ((0, 1), (7, 13), (1000, 4000), (4999, 1)):
        assert torch.equal(arithmetic.kept(3, 1, "a", 0.3, first, count), whole[first : first + count])
    for other in ((4, 1, "a"), (3, 0, "a"), (3, 1, "b")):
        assert float((arithmetic.kept(*other, 0.3, 0, 5000) == whole).float().mean()) < 0.7


def test_manifest_says_what_was_merged(kin: Path, tmp_path: Path) -> None:
    manifest = merge(recipe(kin, "task_vector"), tmp_path / "out")
    assert manifest.extra == Manifest.read(tmp_path / "out").extra
    parents = manifest.extra["parents"]
    assert [(p["name"], p["role"]) for p in parents] == [("base", "base"), ("one", "model"), ("two", "model")]
    assert parents[1]["distance"] == pytest.approx(0.2, rel=0.05)
    assert set(parents[2]["tensors"]) == set(read_tensors(kin / "two"))
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (kin / "one/tokenizer.json").read_bytes()
