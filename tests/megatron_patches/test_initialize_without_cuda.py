"""`initialize_megatron` without CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.megatron_patches.small_run import train, train_without
from tests.ranks import RanksError, run_ranks


def test_pretrain_fails_without_the_patch() -> None:
    with pytest.raises(RanksError, match="Megatron requires CUDA"):
        run_ranks(train_without, 1, "initialize-without-cuda", patched=False)


def test_asynchronous_saving_is_refused_instead_of_waiting_forever(tmp_path: Path) -> None:
    flags = [
        "--async-save",
        "--use-persistent-ckpt-worker",
        "--async-strategy",
        "mcore",
        "--save",
        str(tmp_path),
    ]
    with pytest.raises(RanksError, match="--async-save needs a GPU"):
        run_ranks(train, 1, *flags, timeout=60)
