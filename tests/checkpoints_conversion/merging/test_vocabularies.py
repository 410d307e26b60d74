"""Extended vocabularies: old rows are merged, new ones come from the model that has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from emma.checkpoints_conversion.merging.again import prove
from emma.checkpoints_conversion.merging.write import merge, plan
from tests.checkpoints_conversion.merging.kin import change, make_kin, recipe
from tests.checkpoints_conversion.tiny_models import read_tensors, same_bits

OLD, ROWS, NEW, GROWN = (
    500,
    517,
    20,
    530,
)  # tokens and rows of the base; new tokens, and rows of the grown model
MATRICES = ("model.embed_tokens.weight", "lm_head.weight")


def _grow(folder: Path, word: str = "new") -> None:
    """Gives a model `NEW` more tokens; they take the rows that were padding."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    content["added_tokens"] += [{"id": OLD + i, "content": f"{word}{i}", **flags} for i in range(NEW)]
    path.write_text(json.dumps(content))
    settings = read_json(folder / "config.json")
    write_json(folder / "config.json", settings | {"vocab_size": GROWN})
    generator = torch.Generator().manual_seed(5)

    def edit(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in MATRICES:
            return tensor
        rows = torch.randn(GROWN - OLD, tensor.shape[1], generator=generator).to(tensor.dtype)
        return torch.cat([tensor[:OLD], rows])

    change(folder, edit)


@pytest.fixture
def kin(tmp_path: Path) -> Path:
    root = make_kin(tmp_path / "kin")
    _grow(root / "one")
    return root


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("task_vector", {}),
        ("linear", {}),
        ("ties", {"density": 0.3}),
        ("dare_linear", {"density": 0.5}),
        ("slerp", {"t": 0.5}),
    ],
)
def test_new_rows_come_from_where_they_are(
    kin: Path, tmp_path: Path, method: str, values: dict[str, float]
) -> None:
    manifest = merge(recipe(kin, method, **values), tmp_path / "out")
    expected = {"rows": GROWN, "shared_rows": OLD, "new_rows": GROWN - OLD, "new_rows_from": ["one"]}
    assert manifest.extra["vocabulary"] == expected
    found = read_tensors(tmp_path / "out")
    one, two, base = (read_tensors(kin / name) for name in ("one", "two", "base"))
    for name in MATRICES:
        assert torch.equal(found[name][OLD:], one[name][OLD:])
        rows = [model[name][:OLD].double() for model in (one, two, base)]
        if method == "task_vector":
            wanted = rows[0] + 0.7 * (rows[1] - rows[2])
            assert torch.allclose(found[name][:OLD].double(), wanted, atol=1e-5)
        if method == "linear":
            assert torch.allclose(found[name][:OLD].double(), (rows[0] + 0.7 * rows[1]) / 1.7, atol=1e-5)
    assert read_json(tmp_path / "out/config.json")["vocab_size"] == GROWN
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (kin / "one/tokenizer.json").read_bytes()
    assert prove(tmp_path / "out", logits=False).passed
    # The rows that were padding in the others are part of them all the same.
    path = kin / "two"
    change(
        path,
        lambda name, tensor: (
            tensor + (torch.arange(len(tensor)) == ROWS - 1)[:, None] if name in MATRICES else tensor
        ),
    )
    with pytest.raises(
        UserError, match=r"two .* is not the model that was merged: model\.embed_tokens\.weight"
    ):
        prove(tmp_path / "out", logits=False)


def test_in_megatron_checkpoints(kin: Path, tmp_path: Path) -> None:
    for name in ("base", "one", "two"):
        hf_to_megatron.convert(kin / name, tmp_path / "megatron" / name)
    merge(recipe(kin, "ties", density=0.3), tmp_path / "a")
    merge(recipe(tmp_path / "megatron", "ties", density=0.3), tmp_path / "b")
    megatron_to_hf.convert(tmp_path / "b", tmp_path / "c")
    assert same_bits(read_tensors(tmp_path / "a"), read_tensors(tmp_path / "c"))


def test_several_models_may_have_them(kin: Path, tmp_path: Path) -> None:
    _grow(kin / "two")
    merge(recipe(kin, "task_vector"), tmp_path / "out")
    one, two = (read_tensors(kin / name)[MATRICES[0]][OLD:].double() for name in ("one", "two"))
    found = read_tensors(tmp_path / "out")[MATRICES[0]][OLD:]
    assert torch.allclose(found.double(), (one + 0.7 * two) / 1.7, atol=1e-5)


def test_what_does_not_extend_is_refused(kin: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two has fewer tokens than the result, whose new rows come from one"):
        plan(recipe(kin, "linear", tokenizer="two"))
    shutil.copytree(kin, tmp_path / "other")
    _grow(tmp_path / "other/two", "word")
    with pytest.raises(
        UserError, match="different tokenizers: 'word0' is 500 in the first and no token in the second"
    ):
        plan(recipe(tmp_path / "other", "linear"))
    (kin / "two/tokenizer.json").unlink()
    (kin / "two/tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="two: its embedding has 517 rows, that of one 530, and it has no"):
        plan(recipe(kin, "linear"))


def test_models_without_a_tokenizer_are_named(tmp_path: Path) -> None:
    root = make_kin(tmp_path / "kin")
    (root / "two/tokenizer.json").unlink()
    (root / "two/tokenizer_config.json").unlink()
    assert plan(recipe(root, "linear"))["warnings"] == ["no tokenizer to compare: two"]
