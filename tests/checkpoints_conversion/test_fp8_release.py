"""Runs that keep their weights in FP8 are released as the optimizer's main weights, bit for bit."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from emma.base.errors import CheckFailedError, UserError
from emma.base.manifest import Manifest
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from emma.checkpoints_conversion.checkpoint import find_checkpoint
from emma.tools.runs.checkpoints import checkpoint_folder, mark_complete
from tests.checkpoints_conversion import megatron_ranks
from tests.checkpoints_conversion.fp8_run import change_recipe, change_tensors, round_weights, to_e4m3
from tests.checkpoints_conversion.tiny_models import (
    describe_run,
    read_tensors,
    same_bits,
    save_llama,
    save_tokenizer,
)
from tests.ranks import run_ranks

LAYOUTS = {
    "DP1": (1, (), {}),
    "TP2 PP2 tied": (
        4,
        (
            *(
                "--tensor-model-parallel-size",
                "2",
                "--pipeline-model-parallel-size",
                "2",
                "--sequence-parallel",
            ),
            "--ckpt-fully-parallel-save",
        ),
        {"tie_word_embeddings": True},
    ),
    "PP2 VPP2": (
        2,
        ("--pipeline-model-parallel-size", "2", "--num-layers-per-virtual-pipeline-stage", "1"),
        {"num_key_value_heads": 1},
    ),
    "DP2": (2, (), {"num_key_value_heads": 8}),
}


def _train(folder: Path, layout: str, function: Any = megatron_ranks.train) -> Path:
    """A BF16 run of two steps, both saved; `folder/main` and `folder/model` get step 2's two sets of weights, read
    before anything is rounded."""
    ranks, layout_flags, changes = LAYOUTS[layout]
    source = save_llama(folder / "hf", num_hidden_layers=4, **changes)
    hf_to_megatron.convert(source, folder / "base")
    shape = find_checkpoint(folder / "base").shape
    run = folder / "run"
    run_ranks(
        *(function, ranks, shape, folder / "base", run / "checkpoints", "--save-interval", "1"),
        *("--bf16", "--dist-ckpt-optim-fully-reshardable", *layout_flags),
    )
    for step in (1, 2):
        mark_complete(checkpoint_folder(run / "checkpoints", step), step=step)
    describe_run(run, shape, save_tokenizer(folder / "tokenizer"))
    return run


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 run, unchanged."""
    return _train(tmp_path_factory.mktemp("bf16"), "DP1")


@pytest.fixture
def fp8(bf16: Path, tmp_path: Path) -> Path:
    """The same run as FP8 would have left it."""
    run = Path(shutil.copytree(bf16, tmp_path / "fp8"))
    round_weights(run, 1, 2)
    return run


def test_main_weights_are_released(bf16: Path, fp8: Path, tmp_path: Path) -> None:
    megatron_to_hf.convert(bf16, tmp_path / "main", weights="optimizer")
    assert megatron_to_hf.plan(fp8)["weights"] == "optimizer"
    manifest = megatron_to_hf.convert(fp8, tmp_path / "out")
    main, out = read_tensors(tmp_path / "main"), read_tensors(tmp_path / "out")
    assert same_bits(main, out)
    assert {tensor.dtype for tensor in out.values()} == {torch.float32}

    record = manifest.extra["released"]
    assert (record["weights"], record["fp8_params"]) == ("optimizer", True)
    megatron_to_hf.convert(fp8, tmp_path / "model", weights="model")
    model = read_tensors(tmp_path / "model")
    names = [name for name in main if name.endswith("q_proj.weight")]
    delta = torch.cat([(main[name] - model[name].float()).flatten() for name in names])
    whole = torch.cat([main[name].flatten() for name in names])
    found = record["distance"]["kinds"]["q_proj"]
    assert found["values"] == delta.numel()
    assert found["max_abs_delta"] == delta.abs().max().item()
    assert found["relative_rms"] == pytest.approx((delta.norm() / whole.norm()).item(), rel=1e-5)
    assert 0.015 < found["relative_rms"] < 0.04
    assert found["not_rounded"] > 0.9 * found["values"]
    assert record["distance"]["kinds"]["embed_tokens"]["not_rounded"] == 0
    assert record["distance"]["relative_rms"] > 0.01
    kinds = record["distance"]["kinds"].values()
    assert (
        sum(kind["values"] for kind in kinds)
        == record["distance"]["values"]
        == sum(map(torch.numel, main.values()))
    )


def test_the_models_weights_only_on_demand(fp8: Path, tmp_path: Path) -> None:
    manifest = megatron_to_hf.convert(fp8, tmp_path / "model", weights="model")
    record = manifest.extra["released"]
    assert (record["weights"], record["fp8_params"]) == ("model", True)
    assert (
        record["distance"]["relative_rms"] > 0.01
    )  # how far it is from the main weights is said all the same
    model = read_tensors(tmp_path / "model")
    rounded = model["model.layers.0.mlp.down_proj.weight"]
    assert torch.unique(rounded.abs()).numel() < 130  # E4M3 has 127 magnitudes


def test_averages_are_of_main_weights(bf16: Path, fp8: Path, tmp_path: Path) -> None:
    parts = []
    for step in (1, 2):
        megatron_to_hf.convert(bf16, tmp_path / f"main{step}", step=step, weights="optimizer")
        parts.append(read_tensors(tmp_path / f"main{step}"))
    manifest = megatron_to_hf.convert(fp8, tmp_path / "out", average=(1, 2))
    expected = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    assert same_bits(expected, read_tensors(tmp_path / "out"))
    record = manifest.extra["released"]
    size = sum(tensor.numel() for tensor in read_tensors(tmp_path / "out").values())
    assert record["distance"]["values"] == 2 * size
    # An average is imported as it is, in FP32, for a run to start from.
    hf_to_megatron.convert(tmp_path / "out", tmp_path / "again")
    megatron_to_hf.convert(tmp_path / "again", tmp_path / "back")
    assert same_bits(read_tensors(tmp_path / "out"), read_tensors(tmp_path / "back"))


def test_bf16_runs_release_the_same_bytes_either_way(bf16: Path, tmp_path: Path) -> None:
    manifest = megatron_to_hf.convert(bf16, tmp_path / "model")
    assert manifest.extra["released"] == {"weights": "model", "fp8_params": False, "distance": None}
    rounded = megatron_to_hf.convert(bf16, tmp_path / "main", weights="optimizer", dtype="bf16")
    assert rounded.extra["released"]["distance"]["not_rounded"] == 0
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "main" / "model.safetensors"
    ).read_bytes()


def test_without_optimizer_state(fp8: Path, tmp_path: Path) -> None:
    """A checkpoint whose optimizer state is gone is refused, and released rounded only by name."""
    from torch.distributed.checkpoint import FileSystemReader

    folder = checkpoint_folder(fp8 / "checkpoints", 2)
    reader = FileSystemReader(folder)
    metadata = reader.read_metadata()
    metadata.state_dict_metadata = {
        key: value for key, value in metadata.state_dict_metadata.items() if not key.startswith("optimizer.")
    }
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    (folder / "complete.json").unlink()
    mark_complete(folder, step=2)
    with pytest.raises(
        UserError, match=r"contains no optimizer state; its run kept .* FP8 .*--weights model"
    ):
        megatron_to_hf.convert(fp8, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest = megatron_to_hf.convert(fp8, tmp_path / "out", weights="model")
    assert manifest.extra["released"] == {"weights": "model", "fp8_params": True, "distance": None}


@pytest.mark.parametrize("key", ["optimizer.state.param.decoder.layers.mlp.linear_fc2.weight"])
def test_main_weights_of_another_place_are_refused(fp8: Path, bf16: Path, tmp_path: Path, key: str) -> None:
    """Main weights saved from wrong offsets (NVIDIA/Megatron-LM#5077) are not released."""
    for number, run in enumerate((fp8, Path(shutil.copytree(bf16, tmp_path / "bf16")))):
        folder = checkpoint_folder(run / "checkpoints", 2)
        change_tensors(folder, re.compile(re.escape(key)), lambda block: block.roll(7, -1))
        (folder / "complete.json").unlink()
        mark_complete(folder, step=2)
        with pytest.raises(CheckFailedError, match=r"down_proj\.weight: .* do not round .*#5077") as caught:
            megatron_to_hf.convert(run, tmp_path / f"out{number}", weights="optimizer")
        assert "\n" not in str(caught.value)
        # The model's weights are not hurt by that.
        forward = megatron_to_hf.convert(run, tmp_path / f"model{number}", weights="model").extra["released"]
        assert number == 1 or forward["distance"]["kinds"]["down_proj"]["relative_rms"] > 1
        assert not (tmp_path / f"out{number}").exists()


def test_one_bit_of_a_bf16_runs_main_weights(bf16: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(bf16, tmp_path / "run"))

    def flip(block: torch.Tensor) -> torch.Tensor:
        changed = block.clone()
        changed.view(-1)[5:6].view(torch.int32).bitwise_xor_(1 << 18)
        return changed

    folder = checkpoint_folder(run / "checkpoints", 2)
    change_tensors(folder, re.compile(r"optimizer\.state\.param\.decoder\.final_layernorm\.weight"), flip)
    (folder / "complete.json").unlink()
    mark_complete(folder, step=2)
    with pytest.raises(CheckFailedError, match=r"model\.norm\.weight: 1 of 64 main weights"):
        megatron_to_hf.convert(run, tmp_path / "out", weights="optimizer")


def test_ties_may_break_either_way() -> None:
    """1 + 2⁻⁸ lies between two BF16 numbers; 1 + 2⁻⁸ + 2⁻²³ does not."""
    from emma.checkpoints_conversion.main_weights import _sum

    main = torch.tensor([1 + 2**-8, 1 + 2**-8, 1 + 2**-8 + 2**-23, 1 + 2**-8 + 2**-23, float("nan"), 0.0])
    model = torch.tensor([1.0, 1 + 2**-7, 1 + 2**-7, 1.0, 1.0, 0.0]).bfloat16()
    assert [_sum(main[i : i + 1], model[i : i + 1]).not_rounded for i in range(6)] == [0, 0, 0, 1, 1, 0]
    tiny = torch.tensor([1e-30]), torch.tensor([2e-30]).bfloat16()
    assert (_sum(*tiny).not_rounded, _sum(*tiny).delta_squares) == (1, 0.0)


def test_recipes_that_keep_fp8(bf16: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(bf16 / "checkpoints")
    shutil.copy(bf16 / "recipe.yaml", run)
    assert megatron_to_hf.plan(run)["weights"] == "model"
    change_recipe(run, precision={"fp8": "tensorwise", "fp8_params": False})
    assert megatron_to_hf.plan(run)["weights"] == "model"
    change_recipe(run, precision={"fp8": "tensorwise"}, megatron_args={"fp8-param-gather": True})
    assert megatron_to_hf.plan(run)["weights"] == "optimizer"


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_other_layouts(layout: str, tmp_path: Path) -> None:
    run = _train(tmp_path, layout)
    megatron_to_hf.convert(run, tmp_path / "main", weights="optimizer")
    round_weights(run, 1, 2)
    megatron_to_hf.convert(run, tmp_path / "out")
    main = read_tensors(tmp_path / "main")
    assert same_bits(main, read_tensors(tmp_path / "out"))
    rounded = to_e4m3(main["model.layers.1.mlp.up_proj.weight"])
    assert not torch.equal(rounded, main["model.layers.1.mlp.up_proj.weight"])


@pytest.mark.slow
def test_plain_mixed_precision_optimizer(tmp_path: Path) -> None:
    """Without the distributed optimizer, main weights lie under another name."""
    run = _train(tmp_path, "DP1", megatron_ranks.train_with_plain_optimizer)
    megatron_to_hf.convert(run, tmp_path / "model")
    manifest = megatron_to_hf.convert(run, tmp_path / "main", weights="optimizer")
    assert manifest.extra["released"]["distance"]["not_rounded"] == 0


def test_command_line_says_which(fp8: Path, tmp_path: Path) -> None:
    lines = [
        ["convert", "megatron-to-hf", str(fp8), str(tmp_path / "out"), "--dtype", "bf16"],
        [
            "convert",
            "verify",
            str(fp8),
            str(tmp_path / "out"),
            "--no-logits",
            "--output",
            str(tmp_path / "proof"),
        ],
    ]
    ((code, out, fault), (again, _, fault2)) = run_ranks(megatron_ranks.command, 1, *lines, timeout=300)[0]
    assert (code, again) == (0, 0), fault + fault2
    assert (
        "weights: the optimizer's main weights, since the run keeps the model's in FP8; from the model's"
        in out
    )
    for folder in ("out", "proof"):
        report = json.loads((tmp_path / folder / "parity.json").read_text())
        assert report["passed"]
        assert report["released"]["weights"] == "optimizer"
        assert 0.01 < report["released"]["distance"]["relative_rms"] < 0.04
        assert "main weights" in (tmp_path / folder / "parity.html").read_text()
    assert (
        Manifest.read(tmp_path / "out").extra["released"]
        == json.loads((tmp_path / "out" / "parity.json").read_text())["released"]
    )
