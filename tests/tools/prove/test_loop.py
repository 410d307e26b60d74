"""The independent loop's own parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from emma.recipes.load import load_recipe
from emma.tools.arithmetic.parameters import total_parameters
from emma.tools.prove.begin import Begin
from emma.tools.prove.loop import Replay, bytes_needed, positions, seen
from emma.tools.prove.samples import Samples
from tests.tools.prove.small import Small


def test_a_position_sees_its_document_up_to_itself() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, 2]])
    assert seen(documents)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert positions(documents).tolist() == [[0, 1, 0, 1, 2, 0]]
    assert positions(torch.zeros(1, 4, dtype=torch.int64)).tolist() == [[0, 1, 2, 3]]


def test_the_loss_of_a_batch_is_that_of_its_documents_one_by_one(small: Small) -> None:
    recipe = small.recipe("loss")
    samples = Samples(recipe.mix_folder, 32)
    replay = Replay(recipe, samples, Begin(small.huggingface), "cpu")
    total = torch.zeros((), dtype=torch.float64)
    for index in range(8):
        sample = samples[index]
        for number in set(sample.documents.tolist()):
            here = torch.from_numpy(sample.documents == number)
            tokens, labels = (torch.from_numpy(value)[here] for value in (sample.tokens, sample.labels))
            with torch.no_grad():
                logits = replay.model(tokens[None]).logits[0]
            total += functional.cross_entropy(logits, labels, reduction="sum").double()
    assert any(len(set(samples[index].documents.tolist())) > 1 for index in range(8))
    assert replay.loss(1) == (pytest.approx(float(total) / 256, abs=1e-6), 256)


def test_recomputed_layers_give_the_same_gradient(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small.recipe("recomputed")
    norms = []
    for free in (1 << 40, 1):
        monkeypatch.setattr("emma.tools.prove.loop.available_bytes", lambda device, free=free: free)
        replay = Replay(recipe, Samples(recipe.mix_folder, 32), Begin(small.huggingface), "cpu")
        norms.append(next(iter(replay.steps(1, ()))).grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_weights_that_lack_one_are_refused(small: Small, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from emma.base.errors import UserError

    (tmp_path / "config.json").write_bytes((small.huggingface / "config.json").read_bytes())
    weights = load_file(small.huggingface / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        Begin(tmp_path).model(small.recipe("lacking"))


def test_memory_of_a_large_model_is_that_of_weights_gradients_and_moments() -> None:
    recipe = load_recipe("emma_llama3_8b_bi")
    states = 16 * total_parameters(recipe.model)
    assert states == 16 * 8_030_261_248
    # Logits of a sequence and its activations are some gigabytes more.
    assert 2**33 < bytes_needed(recipe) - states < 2**35
    assert bytes_needed(recipe, recompute=False) > 1.2 * bytes_needed(recipe)
