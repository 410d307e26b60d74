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
        results.append(globals()[name](folder, model, optimizer, *(rest if name == "saved_now" else values)))
        raise SystemExit(0)

    training.train = stop
    train(Path(folder))
    return results[0]


def at_the_start(recipe: Any, function: Callable[..., Any], *values: Any) -> list[Any]:
    run = RunFolder(recipe.run_folder)
    launch = run.prepare(recipe, take_over=True)
    return run_ranks(
        before_the_first_step,
        recipe.cluster.world_size,
        str(run.path),
        function.__name__,
        *values,
        env=rank_environment(recipe) | launch.environment,
        timeout=240,
    )


def part(folder: str) -> Any:
    from emma.tools.training.session.main_weights import MainWeights

    return MainWeights(RunFolder(Path(folder)).own_launch())


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


def shared_after_refreshing(folder: str, model: Any, optimizer: Any) -> tuple[int, int]:
    """After all main weights have been doubled and refreshed: parameters that are not their roundings, by this rank's
    share, and parameters of which the other rank has others."""
    import torch

    from emma.tools.training.main_weights import first_misrounded, main_weights, refresh_model

    shares = main_weights(model, optimizer)
    for share in shares:
        share.fill(share.states()["param"] * 2 + 1e-3)
    refresh_model(model, optimizer)
    wrong = sum(
        first_misrounded(one.parameter, one.start, one.states()["param"]) is not None for one in shares
    )
    unlike = 0
    for parameter in (parameter for chunk in model for parameter in chunk.parameters()):
        first = parameter.detach().float().clone()
        torch.distributed.broadcast(first, 0)
        unlike += not torch.equal(first, parameter.detach().float())
    return wrong, unlike


def test_the_models_weights_are_made_of_the_main_weights_and_shared(
    make_small: Callable[[int], Small],
) -> None:
    parallelism = "parallelism={overlap_grad_reduce: true, overlap_param_gather: true}"
    recipe = make_small(6).recipe("refreshed", *TWO, BF16, parallelism)
    assert at_the_start(recipe, shared_after_refreshing) == [(0, 0), (0, 0)]


def keys() -> dict[str, Any]:
    """In a rank: the tensor that main weights are taken from, by what the checkpoint holds."""
    from types import SimpleNamespace

    from emma.base.errors import UserError
    from emma.tools.training.session.main_weights import MainWeights

    def key(mode: str, main: str | None, in_fp32: bool, rounded: bool) -> str | None:
        part: Any = object.__new__(MainWeights)
        part.mode, part.folder = mode, Path("checkpoints/iter_0000010")
        stored: Any = SimpleNamespace(main_key=lambda piece: main, in_fp32=lambda key: in_fp32)
        try:
            return part._key(stored, SimpleNamespace(key="w"), rounded)
        except UserError as error:
            return f"refused: {error}"

    return {
        "run": key("weights", "optimizer.state.param.w", False, True),
        "import": key("weights", None, False, False),
        "fp8 by bucket": key("weights", None, False, True),
        "resumed by bucket": key("resume", None, False, True),
        "resumed fp32": key("resume", None, True, False),
        "phase": key("phase", "optimizer.state.param.w", False, False),
    }


def test_main_weights_are_never_taken_from_weights_in_fp8() -> None:
    (found,) = run_ranks(keys, 1)
    assert found.pop("fp8 by bucket").startswith(
        "refused: checkpoints/iter_0000010 comes from a run with precision.fp8_params, so its model weights are rounded"
    )
    main = "optimizer.state.param.w"
    assert found == {
        "run": main,
        "import": "w",
        "resumed by bucket": None,
        "resumed fp32": "w",
        "phase": main,
    }


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


def saved_now(folder: str, model: Any, optimizer: Any, scheduler: Any, data: Any, *rest: Any) -> None:
    """A save before the first step."""
    from megatron.training import training

    training.save_checkpoint_and_time(0, model, optimizer, scheduler, 0, rest[3], train_data_iterator=data)


def test_a_run_stopped_before_its_first_step_is_the_base_model(
    make_small: Callable[[int], Small], base_model: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    from emma.checkpoints_conversion import megatron_to_hf

    recipe = make_small(6).recipe("zero", *TWO, BF16, "parallelism={tensor: 2}")
    at_the_start(recipe, saved_now)
    megatron_to_hf.convert(RunFolder(recipe.run_folder).path, tmp_path / "hf", step=0, weights="optimizer")
    base = load_file(base_model / "model.safetensors")
    (released,) = (load_file(file) for file in (tmp_path / "hf").glob("*.safetensors"))
    assert base.keys() == released.keys() and base["lm_head.weight"].dtype == torch.float32
    assert not [name for name in base if not torch.equal(base[name], released[name].float())]


def compared(folder: str, model: Any, optimizer: Any) -> list[tuple[str, int, str | None]]:
    """Of each share of the first rank: its parameter, its last element, and the refusal after a bit of it is turned."""
    import torch

    from emma.tools.training.main_weights import main_weights

    found, first = [], torch.distributed.get_rank() == 0
    shares = main_weights(model, optimizer)
    count = torch.tensor(len(shares))
    torch.distributed.broadcast(count, 0)
    for number in range(int(count)):
        share = shares[number] if first else shares[0]
        right = share.states()["param"].clone()
        if first:
            bits = right.clone().view(torch.int32)
            bits[-1] ^= 1 << 3
            share.fill(bits.view(torch.float32))
        found.append((share.name, share.start + share.size - 1, refusal(folder, model, optimizer)))
        share.fill(right)
    assert refusal(folder, model, optimizer) is None
    return found


LAYOUTS = [
    (BF16, "parallelism={distributed_optimizer: false}"),
    ("parallelism={distributed_optimizer: false}",),
    (BF16, "parallelism={tensor: 2, sequence: true}", "model.vocab_size=500"),
    ("parallelism={pipeline: 2, virtual_pipeline: 2}",),
]


@pytest.mark.parametrize("overrides", LAYOUTS)
def test_every_parameter_is_compared_in_every_layout(
    overrides: tuple[str, ...], make_small: Callable[[int], Small]
) -> None:
    name = "layout-" + "".join(letter if letter.isalnum() else "-" for letter in "".join(overrides))
    said, _ = at_the_start(make_small(6).recipe(name, *TWO, *overrides), compared)
    assert len(said) >= 13  # half of the model's, at least
    for parameter, number, refused in said:
        assert refused is not None and refused.startswith("rank 0: 1 of ")
        assert (
            f"main weights of {parameter} are not the checkpoint's; the first is number {number} of"
            in refused
        )


def look_at_saves(folder: str, model: Any, optimizer: Any) -> dict[str, str | None]:
    """What the look at a save says of a right state and of wrong ones."""
    import torch
    from megatron.core.utils import unwrap_model

    from emma.base.errors import UserError
    from emma.tools.training.main_weights import main_weights, pieces
    from emma.tools.training.session.saved_weights import SavedWeights, _place, _tensors

    (chunk,) = unwrap_model(model)
    key = "decoder.layers.mlp.linear_fc1.weight"
    own = next(share for share in main_weights(model, optimizer) if "linear_fc1.weight" in share.name)
    turned = own.start + own.size // 2

    def said(change: Callable[[Any, dict[str, Any]], None]) -> str | None:
        sharded = {"model": chunk.sharded_state_dict(metadata={})}
        state = optimizer.sharded_state_dict(
            sharded, metadata={"distrib_optim_sharding_type": "fully_reshardable"}
        )
        change(state, {entry.key: entry for entry in _tensors(state) if holds(entry, sharded) is not None})
        try:
            SavedWeights().check(sharded, state, model, optimizer)
        except UserError as error:
            return str(error)
        return None

    def holds(entry: Any, sharded: Any) -> int | None:
        """Where a block holds the element `turned` of the parameter, flat; None if it does not."""
        if not entry.key.endswith(key):
            return None
        parameter, start = _place([(own.parameter, piece) for piece in pieces(sharded)[own.parameter]], entry)
        inside = parameter is own.parameter and start <= turned < start + entry.data.numel()
        return turned - start if inside else None

    def element(of_layer: dict[str, Any], kind: str) -> tuple[Any, int]:
        entry = of_layer[f"optimizer.state.{kind}.{key}"]
        place = holds(entry, {"model": chunk.sharded_state_dict(metadata={})})
        assert place is not None
        return entry.data.view(-1), place

    def bit(kind: str) -> Callable[[Any, dict[str, Any]], None]:
        def change(state: Any, of_layer: dict[str, Any]) -> None:
            data, place = element(of_layer, kind)
            data.view(torch.int32)[place] ^= 1

        return change

    def far(state: Any, of_layer: dict[str, Any]) -> None:
        data, place = element(of_layer, "param")
        data[place] *= 1.1

    def lacking(state: Any, of_layer: dict[str, Any]) -> None:
        gone = of_layer[f"optimizer.state.param.{key}"]
        for states in state["param_state"].values():
            if any(piece is gone for piece in states["param"].values()):
                del states["param"]

    def elsewhere(state: Any, of_layer: dict[str, Any]) -> None:
        moved = next(entry for entry in _tensors(state) if ".state.param." in entry.key)
        moved.key = "optimizer.state.param.embedding.word_embeddings.weight"
        moved.global_shape, moved.global_offset = (512, 64), (600, 0)

    def model_moved(state: Any, of_layer: dict[str, Any]) -> None:
        own.parameter.data.view(-1)[turned] *= 1.1

    return {
        "right": said(lambda state, of_layer: None),
        "bit": said(bit("param")),
        "moment": said(bit("exp_avg_sq")),
        "far": said(far),
        "lacking": said(lacking),
        "elsewhere": said(elsewhere),
        "model": said(model_moved),
        "own": f"{own.name} {turned}",
    }


def test_a_save_is_looked_at_bit_by_bit(make_small: Callable[[int], Small]) -> None:
    said, _ = at_the_start(make_small(6).recipe("saves", *TWO, BF16), look_at_saves)
    name, number = said["own"].split()
    key = "decoder.layers.mlp.linear_fc1.weight"
    assert said["right"] is None
    assert f"rank 0: optimizer.state.param.{key} would not hold what the optimizer has: 1 of" in said["bit"]
    assert f"from number {number} on" in said["bit"]
    assert f"optimizer.state.exp_avg_sq.{key} would not hold what the optimizer has: 1 of" in said["moment"]
    assert (
        f"optimizer.state.param.{key} would hold main weights that do not round to the model's" in said["far"]
    )
    assert f"main weights of {name} would not be saved" in said["lacking"]
    assert "is at (600, 0) of a tensor, where the rank has no weights" in said["elsewhere"]
    assert f"main weights of {name} do not round to the model's: 1 of" in said["model"]


class Eighth:
    """Stands for a parameter in FP8, which needs a GPU: its numbers and its scaling factor."""

    def __init__(self, values: Any, scale_inv: Any) -> None:
        self.values = values
        if scale_inv is not None:
            self._scale_inv = scale_inv

    def dequantize(self, dtype: Any) -> Any:
        return self.values.to(dtype)


def roundings() -> dict[str, Any]:
    """In a rank: numbers that do not round to the model's, of each format."""
    import torch

    from emma.tools.training import main_weights

    torch.manual_seed(0)
    main = torch.randn(64, 256) * 0.02
    other = main.flip(0).flatten()
    flat, found = main.flatten(), {}

    def wrong(parameter: Any, model: Any, values: Any, exact: bool = True) -> int:
        return int(main_weights.misrounded(parameter, model, values, exact).sum())

    found["fp32"] = [wrong(flat, flat, flat), wrong(flat, flat, flat.nextafter(torch.ones(1)))]
    half = flat.bfloat16()
    next_one = (half.view(torch.int16) + 1).view(torch.bfloat16)
    found["bf16"] = [wrong(half, half, flat), wrong(half, next_one, flat), wrong(half, half, other)]
    bits = torch.arange(0x3C008000, 0x3C008000 + (1 << 22), 1 << 16, dtype=torch.int32)
    middle = bits.view(torch.float32)
    up, down = ((bits + shift).view(torch.float32).bfloat16() for shift in (0x7FFF, -0x8000))
    beyond = ((bits & ~0xFFFF) + 0x20000).view(torch.float32).bfloat16()
    found["middle"] = [wrong(half, model, middle) for model in (up, down, beyond)]
    nan = torch.full((4,), torch.nan)
    found["nan"] = [wrong(half, nan.bfloat16(), nan), wrong(half, nan.bfloat16(), torch.ones(4))]
    found["16-bit"] = [wrong(half, half, flat.half().float(), False), wrong(half, half, other, False)]

    main_weights.is_float8tensor = lambda parameter: isinstance(parameter, Eighth)
    for scaling in FP8:
        model = rounded_to_fp8(main.bfloat16(), scaling)
        factor = {"delayed": torch.ones(1), "tensorwise": (main.abs().max() / 448)[None]}.get(scaling)
        parameter, values = Eighth(model, factor), model.flatten()
        # In delayed scaling without a history, few numbers are left.
        found[scaling] = [wrong(parameter, values, flat), wrong(parameter, values, other) / flat.numel()]
    clipped = Eighth(torch.tensor([448.0, -448.0, 448.0]), torch.ones(1))
    found["clipped"] = [wrong(clipped, clipped.values, torch.tensor([900.0, -900.0, -900.0]))]
    return found


def test_what_rounds_to_what() -> None:
    (found,) = run_ranks(roundings, 1)
    size = 64 * 256
    assert found["fp32"] == [0, size]
    right, next_one, other = found["bf16"]
    assert right == 0 and next_one == size and other > 0.9 * size
    assert found["middle"] == [0, 0, 64]
    assert found["nan"] == [0, 4]
    assert found["16-bit"][0] == 0 and found["16-bit"][1] > 0.9 * size
    assert {scaling: found[scaling][0] for scaling in FP8} == dict.fromkeys(FP8, 0)
    assert all(found[scaling][1] > 0.8 for scaling in FP8)
    assert found["clipped"] == [1]
