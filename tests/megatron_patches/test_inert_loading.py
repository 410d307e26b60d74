"""A checkpoint's pickles: what torch, Megatron and a layer's extra state run without the patch, and not with it."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from emma.megatron_patches.inert_loading import refusal
from tests.hostile import Call, archive, poison_block
from tests.megatron_patches.conftest import Reference
from tests.megatron_patches.small_run import at_step, train, train_without
from tests.ranks import run_ranks, start_ranks

STEP = "iter_0000004"


def poisoned(reference: Reference, tmp_path: Path, where: str) -> tuple[Path, Path]:
    """A copy of the reference run's checkpoint, and the folder that loading it would make."""
    folder, marker = tmp_path / "run", tmp_path / "attacked"
    shutil.copytree(reference.folder / STEP, folder / STEP)
    at_step(folder, 4)
    if where == ".metadata":
        path = folder / STEP / ".metadata"
        metadata = pickle.loads(path.read_bytes())
        metadata.planner_data = Call(os.mkdir, str(marker))
        path.write_bytes(pickle.dumps(metadata))
    else:
        poison_block(folder / STEP, where, archive([Call(os.mkdir, str(marker))]))
    return folder, marker


def train_and_say(*arguments: str) -> None:
    """Ends as a launched rank does: not every torch tells why a checkpoint could not be read."""
    try:
        train(*arguments)
    finally:
        print(refusal())


@pytest.mark.parametrize("where", [".metadata", "common_state/shard_0_1", "rng_state/shard_0.0_1.1"])
def test_without_the_patch_a_checkpoint_runs_code(where: str, reference: Reference, tmp_path: Path) -> None:
    folder, marker = poisoned(reference, tmp_path, where)
    start_ranks(train_without, 1, "inert-loading", "--load", str(folder), patched=False).outcomes(timeout=120)
    assert marker.is_dir()


@pytest.mark.parametrize("where", [".metadata", "common_state/shard_0_1", "rng_state/shard_0.0_1.1"])
def test_with_it_the_rank_stops(where: str, reference: Reference, tmp_path: Path) -> None:
    folder, marker = poisoned(reference, tmp_path, where)
    (outcome,) = start_ranks(train_and_say, 1, "--load", str(folder)).outcomes(timeout=120)
    assert outcome.exit_code != 0 and "mkdir, which no checkpoint needs" in outcome.output
    assert not marker.exists()


def test_a_run_resumes_to_the_last_digit(reference: Reference) -> None:
    (losses,) = run_ranks(train, 1, "--load", str(reference.folder))
    assert losses == reference.second_half


def load_everything(folder: str) -> dict[str, Any]:
    """What torch's own functions give, with the patch, for files of torch's own making."""
    import torch
    from torch.storage import UntypedStorage

    shared = torch.arange(6.0)
    value = {
        "views": (shared, shared[2:4], shared.view(2, 3).t()),
        "types": [torch.zeros(2, dtype=kind) for kind in (torch.bfloat16, torch.int64, torch.bool)],
        "new types": torch.zeros(3, dtype=torch.float8_e4m3fn),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "state": torch.nn.Linear(2, 2).state_dict(),
    }
    path = Path(folder) / "value.pt"
    torch.save(value, path)
    again = torch.load(path, weights_only=False)
    older = Path(folder) / "older.pt"
    torch.save(value, older, _use_new_zipfile_serialization=False)
    old = torch.load(older)
    same = all(
        torch.equal(torch.as_tensor(ours).float(), torch.as_tensor(theirs).float())
        for made in (again, old)
        for ours, theirs in zip(
            [
                *made["views"],
                *made["types"],
                made["new types"],
                made["none"],
                made["scalar"],
                made["parameter"],
            ],
            [
                *value["views"],
                *value["types"],
                value["new types"],
                value["none"],
                value["scalar"],
                value["parameter"],
            ],
            strict=True,
        )
    )
    again["views"][0][2] = 99
    pickled = pickle.loads(pickle.dumps(torch.arange(3)))  # Megatron makes torch.load read such storages
    return {
        "same": same,
        "shared": again["views"][1][0].item(),
        "types": type(again["parameter"]).__name__ + type(again["state"]).__name__,
        "versions": again["state"]._metadata == value["state"]._metadata,
        "pickled": pickled.tolist(),
        "storage": UntypedStorage(2).nbytes(),
    }


def test_torch_load_reads_what_torch_save_writes(tmp_path: Path) -> None:
    assert run_ranks(load_everything, 1, str(tmp_path)) == [
        {
            "same": True,
            "shared": 99,
            "types": "ParameterOrderedDict",
            "versions": True,
            "pickled": [0, 1, 2],
            "storage": 2,
        }
    ]


def extra_states(marker: str) -> list[str]:
    """A layer that unpickles its extra state as Transformer Engine's do, given several."""
    import torch

    class Layer(torch.nn.Module):
        seen: Any = None

        def get_extra_state(self) -> Any:
            return torch.empty(0, dtype=torch.uint8)

        def set_extra_state(self, state: Any) -> None:
            if state.numel() and os.getenv("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE", "0") == "1":
                self.seen = pickle.loads(state.numpy().tobytes())

    def bytes_of(value: Any) -> Any:
        return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)

    answers = []
    good = {"scale_fwd": torch.ones(3), "extra_fp8_variables": {"num_gemms": 1, "name": ("a", 2)}}
    for state in (
        torch.empty(0, dtype=torch.uint8),
        bytes_of(good),
        bytes_of({"scale_fwd": Call(os.mkdir, marker)}),
        bytes_of({"scale_fwd": Call(torch.storage._load_from_bytes, archive(Call(os.mkdir, marker)))}),
    ):
        layer = Layer()
        try:
            layer.load_state_dict({"_extra_state": state})
            answers.append("nothing" if layer.seen is None else str(layer.seen["scale_fwd"].tolist()))
        except Exception as error:  # noqa: BLE001  the answer is what is tested
            answers.append(str(error).splitlines()[-1].strip())
    return [*answers, os.getenv("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE", "unset")]


def test_extra_states_are_looked_at_before_a_layer_unpickles_them(tmp_path: Path) -> None:
    ((nothing, good, call, nested, after),) = run_ranks(extra_states, 1, str(tmp_path / "attacked"))
    assert (nothing, good, after) == ("nothing", "[1.0, 1.0, 1.0]", "unset")
    for answer in (call, nested):
        assert "_extra_state of the checkpoint: refused" in answer
    assert not (tmp_path / "attacked").exists()
