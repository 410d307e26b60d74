"""Main weights at the start, and before each save, in ranks that stop where training would begin."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emma.tools.runs.run_folder import RunFolder
from tests.ranks import run_ranks
from tests.tools.training.conftest import Small
from tests.training_run import rank_environment, train_run

BF16 = "precision={name: bf16, compute: bf16}"
TWO = ("cluster.gpus_per_node=2", "validation.groups=[]")
FP8 = ("tensorwise", "delayed", "blockwise", "mxfp8")


def before_the_first_step(folder: str, name: str, *values: Any) -> Any:
    """In a rank: a launch up to the first step, where it calls a function of this module instead of training."""
    from megatron.training import training

    from emma.tools.training.worker import train

    results = []

    @functools.wraps(training.train)
    def stop(forward_step: Any, model: Any, optimizer: Any, *rest: Any, **named: Any) -> None:
        results.append(globals()[name](folder, model, optimizer, *values))
        raise SystemExit(0)

    training.train = stop
    train(Path(folder))
    return results[0]


def at_the_start(recipe: Any, function: Callable[..., Any], *values: Any) -> list[Any]:
    run = RunFolder(recipe.run_folder)
    run.prepare(recipe, take_over=True)
    return run_ranks(
        before_the_first_step,
        recipe.cluster.world_size,
        str(run.path),
        function.__name__,
        *values,
        env=rank_environment(recipe),
        timeout=240,
    )


def part(folder: str) -> Any:
    from emma.tools.training.session.main_weights import MainWeights

    return MainWeights(RunFolder(Path(folder)).read_launch())


def refusal(folder: str, model: Any, optimizer: Any) -> str | None:
    """What the comparison with the checkpoint says."""
    from emma.base.errors import UserError

    try:
        part(folder).compare(model, optimizer)
    except UserError as error:
        return str(error)
    return None


def rounded_to_fp8(weights: Any, scaling: str) -> Any:
    """Weights [rows, columns] or [n] through E4M3 with the factors of a scaling."""
    import torch
    import torch.nn.functional as functional

    def through(block: Any, factor: Any) -> Any:
        return (block * factor).clamp(-448, 448).to(torch.float8_e4m3fn).float() / factor

    flat = weights.detach().float()
    if scaling == "delayed":  # no history yet
        return through(flat, 1.0)
    if scaling == "tensorwise" or flat.ndim == 1:
        return through(flat, 448 / flat.abs().max())
    size = (128, 128) if scaling == "blockwise" else (1, 32)
    rows, columns = flat.shape
    padded = functional.pad(flat, (0, -columns % size[1], 0, -rows % size[0]))
    blocks = padded.unflatten(1, (-1, size[1])).unflatten(0, (-1, size[0]))
    factor = 448 / blocks.abs().amax((1, 3), keepdim=True)
    if scaling == "mxfp8":
        factor = 2.0 ** factor.log2().floor()
    return through(blocks, factor).flatten(2, 3).flatten(0, 1)[:rows, :columns]


def damaged_and_filled(folder: str, model: Any, optimizer: Any) -> dict[str, Any]:
    """Of each FP8 scaling: the refusal of main weights that are its rounding, as Megatron leaves them; the largest
    relative error; whether they are the checkpoint's after filling; and the refusal after one bit is turned."""
    import torch

    from emma.tools.training.main_weights import main_weights

    found: dict[str, Any] = {}
    shares = main_weights(model, optimizer)
    for scaling in FP8:
        right = [share.states()["param"].clone() for share in shares]
        for share in shares:
            whole = rounded_to_fp8(share.parameter, scaling).reshape(-1)
            share.fill(whole[share.start : share.start + share.size])
        matrices = [pair for pair in zip(shares, right, strict=True) if pair[0].parameter.ndim == 2]
        error = sum((share.states()["param"] - values).square().sum() for share, values in matrices)
        size = sum(values.square().sum() for _, values in matrices)
        rounding = refusal(folder, model, optimizer)
        part(folder)._fill(shares, model, optimizer)
        equal = all(
            torch.equal(share.states()["param"], values) for share, values in zip(shares, right, strict=True)
        )
        accepted = refusal(folder, model, optimizer)
        if torch.distributed.get_rank() == 1:
            share = next(share for share in shares if "linear_fc2" in share.name)
            bits = share.states()["param"].view(torch.int32)
            bits[17] ^= 1
            share.fill(bits.view(torch.float32))
            expected = (share.name, share.start + 17)
        else:
            expected = None
        one_bit = refusal(folder, model, optimizer)
        part(folder)._fill(shares, model, optimizer)
        found[scaling] = (rounding, float((error / size).sqrt()), equal, accepted, one_bit, expected)
    return found


@pytest.fixture(scope="module")
def starts(make_small: Callable[[int], Small]) -> list[dict[str, Any]]:
    """A BF16 run from an FP32 base on two data-parallel ranks."""
    return at_the_start(make_small(6).recipe("tampered", *TWO, BF16), damaged_and_filled)


@pytest.mark.parametrize("scaling", FP8)
def test_weights_rounded_to_fp8_are_refused_and_replaced(scaling: str, starts: list[dict[str, Any]]) -> None:
    rounding, error, equal, accepted, _, _ = starts[0][scaling]
    assert 0.01 < error < 0.2
    assert "main weights of" in rounding and "are not the checkpoint's; the first is number" in rounding
    assert "Nothing was trained" in rounding
    assert equal and accepted is None


@pytest.mark.parametrize("scaling", FP8)
def test_one_bit_is_refused_on_every_rank_with_its_place(scaling: str, starts: list[dict[str, Any]]) -> None:
    (*_, first, _), (*_, second, (name, number)) = (start[scaling] for start in starts)
    assert first == second
    assert first.startswith("rank 1: 1 of ")
    assert (
        f"main weights of {name} are not the checkpoint's; the first is number {number} of the rank's"
        in first
    )


def exact_share(folder: str, model: Any, optimizer: Any, checkpoint: str) -> dict[str, bool]:
    """Of each parameter that is stored whole: whether the rank's main weights are the FP32 ones of the checkpoint's
    optimizer, read by torch."""
    import torch
    import torch.distributed.checkpoint as dcp

    from emma.tools.training.main_weights import main_weights

    found = {}
    for share in main_weights(model, optimizer):
        if "layers" in share.name:
            continue
        name = f"optimizer.state.param.{share.name}"
        state = {name: torch.empty(tuple(share.parameter.shape))}
        dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
        stored = state[name].flatten()[share.start : share.start + share.size]
        main = share.states()["param"]
        found[share.name] = torch.equal(main, stored) and not torch.equal(main, stored.bfloat16().float())
    return found


@pytest.fixture(scope="module")
def trained(make_small: Callable[[int], Small]) -> RunFolder:
    short = ("schedule.steps=2", "schedule.warmup_steps=1", "checkpoint.interval=1")
    return train_run(make_small(6).recipe("trained", *TWO, BF16, *short))


def test_a_start_from_a_run_takes_its_fp32_weights(
    trained: RunFolder, make_small: Callable[[int], Small]
) -> None:
    start = f"start={{mode: weights, checkpoint: '{trained.path}', step: 2}}"
    checkpoint = trained.checkpoints / "iter_0000002"
    found = at_the_start(make_small(6).recipe("from-run", *TWO, BF16, start), exact_share, str(checkpoint))
    together = {name for rank in found for name in rank}
    assert together == {
        "embedding.word_embeddings.weight",
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    }
    assert all(all(rank.values()) for rank in found)


def compared(folder: str, model: Any, optimizer: Any) -> str | None:
    """The refusal after a bit of the last parameter of each rank has been turned."""
    import torch

    from emma.tools.training.main_weights import main_weights

    share = main_weights(model, optimizer)[-1]
    bits = share.states()["param"].view(torch.int32).clone()
    bits[-1] ^= 1 << 3
    share.fill(bits.view(torch.float32))
    return refusal(folder, model, optimizer)


@pytest.mark.parametrize(
    "overrides",
    [
        (BF16, "parallelism={distributed_optimizer: false}"),
        ("parallelism={distributed_optimizer: false}",),
        (BF16, "parallelism={tensor: 2, sequence: true}"),
        ("parallelism={pipeline: 2, virtual_pipeline: 2}",),
    ],
)
def test_every_optimizer_and_layout_is_compared(
    overrides: tuple[str, ...], make_small: Callable[[int], Small]
) -> None:
    name = "optimizer-" + "".join(letter if letter.isalnum() else "-" for letter in "".join(overrides))
    for said in at_the_start(make_small(6).recipe(name, *TWO, *overrides), compared):
        assert said is not None and "rank 0: 1 of" in said
