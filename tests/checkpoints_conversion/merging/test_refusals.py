"""Models that don't belong together, and faults planted in parents and results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, write_json
from emma.checkpoints_conversion import hf_to_megatron
from emma.checkpoints_conversion.merging.again import prove
from emma.checkpoints_conversion.merging.write import merge, plan
from emma.recipes.load import load_merge
from tests.checkpoints_conversion.merging.kin import change, descend, make_kin, recipe
from tests.checkpoints_conversion.tiny_models import save_llama, save_tokenizer
from tests.command_line import emma


@pytest.fixture(scope="module")
def kin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kin(tmp_path_factory.mktemp("kin"))


def _with(kin: Path, root: Path, **replaced: Callable[[Path], Any]) -> Path:
    """The models, some of them changed."""
    for name in ("base", "one", "two"):
        shutil.copytree(kin / name, root / name)
        if name in replaced:
            replaced[name](root / name)
    return root


def _config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        write_json(path, read_json(path) | values)

    return edit


def _retyped(folder: Path) -> None:
    change(folder, lambda name, tensor: tensor.bfloat16())


def _other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"<|end|>"', '"<|stop|>"'))
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("<|end|>", "<|stop|>"))


def _other_text(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(content))


def _shifted(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.roll(1, 0) if name in ("model.embed_tokens.weight", "lm_head.weight") else tensor


def _partly_shifted(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name != "model.embed_tokens.weight":
        return tensor
    return torch.cat([tensor[:450], tensor[450:].roll(1, 0)])


def _broken(value: float) -> Callable[[str, torch.Tensor], torch.Tensor]:
    def edit(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "model.layers.1.mlp.up_proj.weight":
            tensor = tensor.clone()
            tensor[7, 3] = value
        return tensor

    return edit


def _edit(edit: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: change(folder, edit) and None


def _stranger(folder: Path) -> None:
    shutil.rmtree(folder)
    save_tokenizer(save_llama(folder, seed=9))


def _deeper(folder: Path) -> None:
    shutil.rmtree(folder)
    save_tokenizer(save_llama(folder, num_hidden_layers=2))


def _tied(folder: Path) -> None:
    shutil.rmtree(folder)
    save_tokenizer(save_llama(folder, tie_word_embeddings=True))


FAULTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "rope": ("two", _config(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}), "rope_theta"),
    "norm": ("two", _config(rms_norm_eps=1e-6), "norm_epsilon: 1e-05 != 1e-06"),
    "layers": ("two", _deeper, "different networks: layers"),
    "tied": ("two", _tied, "tie_embeddings"),
    "types": ("two", _retyped, "say in which type the result is to be written"),
    "tokens": (
        "two",
        _other_tokenizer,
        "are different tokenizers: '<|end|>' is 498 in the first and no token",
    ),
    "text": ("two", _other_text, "same tokens, but `normalizer` differs"),
    "wrong base": ("base", _stranger, "is no kin of base"),
    "stranger": ("two", _stranger, "two is no kin of base"),
    "shifted rows": ("two", _edit(_shifted), "rows are shifted, or the tokens are others"),
    "some rows shifted": ("two", _edit(_partly_shifted), "the first 450: rows are shifted"),
    "NaN": ("two", _edit(_broken(float("nan"))), "up_proj.weight has 1 values that are not finite"),
    "infinity": ("base", _edit(_broken(float("-inf"))), r"the first \(-inf\) at \[7, 3\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_belong_together_is_refused(kin: Path, tmp_path: Path, fault: str) -> None:
    which, edit, message = FAULTS[fault]
    root = _with(kin, tmp_path, **{which: edit})
    with pytest.raises(UserError, match=message):
        merge(recipe(root, "task_vector"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one", "two"]


def test_strangers_are_merged_if_that_is_said(kin: Path, tmp_path: Path) -> None:
    root = _with(kin, tmp_path, two=_stranger)
    manifest = merge(recipe(root, "linear", allow_distant=True), tmp_path / "out")
    assert manifest.extra["parents"][1]["distance"] > 1
    with pytest.raises(UserError, match="two is no kin of one"):
        merge(recipe(root, "linear"), tmp_path / "out", overwrite=True)


def test_types_are_mixed_if_the_result_has_one(kin: Path, tmp_path: Path) -> None:
    root = _with(kin, tmp_path, two=_retyped)
    assert merge(recipe(root, "linear", dtype="bf16"), tmp_path / "out").extra["dtype"] == "bfloat16"
    huge = _with(kin, tmp_path / "huge", two=_edit(_broken(1e6)))
    with pytest.raises(UserError, match="the merge test: parameter"):
        merge(recipe(huge, "linear", dtype="fp16"), tmp_path / "huge/out")


def test_descendants_of_other_bases_are_refused(kin: Path, tmp_path: Path) -> None:
    def exported(name: str) -> Callable[[Path], None]:
        return lambda folder: write_json(folder / "manifest.json", {"extra": {"huggingface": name}})

    root = _with(kin, tmp_path, one=exported("a/base"), two=exported("b/base"))
    with pytest.raises(UserError, match="one descends from a/base, and two from b/base"):
        plan(recipe(root, "linear"))


def test_a_bit_that_flips_in_a_parent_is_found(kin: Path, tmp_path: Path) -> None:
    root = _with(kin, tmp_path)
    # A task vector that does not count: the result is the same without it, its parent is not.
    unused = recipe(root, "task_vector").model_copy(
        update={
            "models": [
                model.model_copy(update={"weight": float(number)})
                for number, model in enumerate(recipe(root, "task_vector").models)
            ]
        }
    )
    for number, given in enumerate((recipe(root, "task_vector"), recipe(root, "ties", density=0.2), unused)):
        merge(given, tmp_path / f"out{number}")
        assert prove(tmp_path / f"out{number}", logits=False).passed
    path = root / "one/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # the lowest bit of the last value
    path.write_bytes(content)
    for number in range(3):
        with pytest.raises(
            CheckFailedError, match=r"one \(.*\) is not the model that was merged: .* has other bytes"
        ):
            prove(tmp_path / f"out{number}", logits=False)


def test_a_bit_that_flips_in_the_result_is_found(kin: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        hf_to_megatron.convert(kin / name, tmp_path / "megatron" / name)
    merge(recipe(kin, "linear"), tmp_path / "hf")
    merge(recipe(tmp_path / "megatron", "linear"), tmp_path / "checkpoint")
    path = tmp_path / "hf/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    report = prove(tmp_path / "hf", logits=False)
    assert not report.passed
    assert "1 of 30 parameters differ" in report.faults()[0]
    path = tmp_path / "checkpoint/iter_0000000/__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckFailedError):
        prove(tmp_path / "checkpoint")
    config = tmp_path / "hf/config.json"
    write_json(config, read_json(config) | {"rms_norm_eps": 1e-6})
    with pytest.raises(CheckFailedError, match=r"config\.json"):
        prove(tmp_path / "hf")


def test_a_damaged_checkpoint_is_no_parent(kin: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        hf_to_megatron.convert(kin / name, tmp_path / name)
    path = tmp_path / "two/iter_0000000/__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckFailedError, match="__0_0"):
        merge(recipe(tmp_path, "linear"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


RECIPES = {
    "method: linear\nmodels: [{path: a}]\n": "an average takes two or more models",
    "method: ties\nmodels: [{path: a}]\ndensity: 0.5\n": "method ties needs a base",
    "method: linear\nbase: {path: b}\nmodels: [{path: a}, {path: c}]\n": "method linear has no base",
    "method: ties\nbase: {path: b}\nmodels: [{path: a}]\n": "ties needs a density",
    "method: ties\nbase: {path: b}\nmodels: [{path: a}]\ndensity: 1.5\n": "out of range",
    "method: slerp\nmodels: [{path: a}, {path: b}]\n": "slerp takes two models and t",
    "method: linear\nmodels: [{path: a, wieght: 1}]\n": "did you mean `weight`",
    "method: linear\nmodels: [{path: a, steps: [1, 1]}]\n": "two or more distinct",
    "method: linear\nmodels: [{path: a, steps: [1, 2]}]\naverage: ema\n": "ema_decay go together",
    "method: linear\nmodels: [{path: a}, {path: b}]\naverage: uniform\n": "one model with steps",
    "method: lienar\nmodels: [{path: a}]\n": "is not a choice",
}


@pytest.mark.parametrize("text", RECIPES)
def test_recipes(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(UserError, match=RECIPES[text]):
        load_merge(tmp_path / "m.yaml")


def test_names(kin: Path, tmp_path: Path) -> None:
    models = [{"path": str(kin / "one")}, {"path": str(kin / "one")}]
    with pytest.raises(UserError, match="two models of the merge are called one"):
        plan(recipe(kin, "linear", models=models))
    with pytest.raises(UserError, match="no such folder"):
        plan(recipe(tmp_path, "linear"))
    with pytest.raises(UserError, match="no model of this merge; use one of one, two"):
        plan(recipe(kin, "linear", tokenizer="three"))
    with pytest.raises(UserError, match="so it has no step 3"):
        plan(
            recipe(kin, "linear", models=[{"path": str(kin / "one"), "step": 3}, {"path": str(kin / "two")}])
        )
    with pytest.raises(UserError, match="weights sum to zero"):
        plan(
            recipe(
                kin,
                "linear",
                models=[{"path": str(kin / n), "weight": w} for n, w in (("one", 1), ("two", -1))],
            )
        )


def test_a_result_does_not_replace_a_parent(kin: Path, tmp_path: Path) -> None:
    root = _with(kin, tmp_path / "kin")
    for destination in (root / "one", root):
        with pytest.raises(UserError, match="holds one, which is merged"):
            merge(recipe(root, "linear"), destination, overwrite=True)


def test_command(kin: Path, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(
        f"method: task_vector\nbase: {{path: {kin}/base}}\n"
        f"models:\n  - {{path: {kin}/one}}\n  - {{path: {kin}/two, weight: 0.7}}\n"
    )
    arguments = ("convert", "merge", f"{tmp_path}/m.yaml", f"{tmp_path}/out")
    planned = emma(*arguments, "--dry-run", "--json")
    assert json.loads(planned.out)["vocabulary"]["rows"] == 517
    assert not (tmp_path / "out").exists()
    done = emma(*arguments)
    assert done.code == 0, done.err
    assert "model two" in done.out and "from base" in done.out
    checked = emma("convert", "verify", f"{tmp_path}/out")
    assert checked.code == 0, checked.err
    assert "parameters: 30 of 30 equal" in checked.out
    assert read_json(tmp_path / "out/parity.json")["passed"]
    again = emma(*arguments)
    assert again.code == 2 and "--overwrite" in again.err


def test_descent_is_measured_over_all_matrices(kin: Path, tmp_path: Path) -> None:
    descend(kin / "base", tmp_path / "two", 5, 0.6)
    shutil.copytree(kin / "one", tmp_path / "one")
    manifest = merge(recipe(tmp_path, "linear"), tmp_path / "out", overwrite=True)
    assert 0.5 < manifest.extra["parents"][1]["distance"] < 1
