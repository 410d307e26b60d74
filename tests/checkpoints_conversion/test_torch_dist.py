"""Reading and writing `torch_dist` folders without Megatron."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.checkpoints_conversion.torch_dist_reader import TorchDistReader
from emma.checkpoints_conversion.torch_dist_writer import Block, write_torch_dist

WHOLE = torch.arange(2 * 6 * 4, dtype=torch.float32).view(2, 6, 4)


def _block(key: str, tensor: torch.Tensor, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Block:
    part = tensor[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))].contiguous()

    @contextmanager
    def opened() -> Iterator[torch.Tensor]:
        yield part

    return Block(key, tuple(tensor.shape), offsets, sizes, tensor.dtype, opened)


def _mark(folder: Path) -> None:
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Two layers of a weight, each split into three blocks of rows, and a vector of another type."""
    blocks = [_block("w", WHOLE, (layer, row, 0), (1, 2, 4)) for layer in range(2) for row in (0, 2, 4)]
    blocks.append(_block("v", torch.arange(5).half(), (0,), (5,)))
    records = write_torch_dist(tmp_path, blocks, {"extra/shard_0_1": {"a": 1}}, file_bytes=100)
    _mark(tmp_path)
    assert len(records) > 2
    assert all(record.checksum == f"sha256:{sha256_file(tmp_path / record.path)}" for record in records)
    return tmp_path


def test_torch_reads_what_is_written(written: Path) -> None:
    state = {"w": torch.zeros(2, 6, 4), "v": torch.zeros(5, dtype=torch.half)}
    dcp.load(state, checkpoint_id=written, no_dist=True)
    assert torch.equal(state["w"], WHOLE)
    assert torch.equal(state["v"], torch.arange(5).half())


@pytest.mark.parametrize(
    ("offsets", "sizes"),
    [((0, 0, 0), (2, 6, 4)), ((1, 2, 0), (1, 2, 4)), ((1, 1, 1), (1, 4, 2)), ((0, 5, 3), (2, 1, 1))],
)
def test_any_slice(written: Path, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    expected = WHOLE[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))]
    reader = TorchDistReader(written)
    assert (reader.keys, reader.size("w"), reader.dtype("v")) == ({"w", "v"}, (2, 6, 4), torch.half)
    for _ in range(2):  # the second time from the cached locations
        with reader.open("w", offsets, sizes) as tensor:
            assert torch.equal(tensor, expected)


def test_numbers_at_odd_places(tmp_path: Path) -> None:
    """Adjacent archives without gaps, as torch's own writer leaves them, put data at arbitrary byte
    offsets."""
    state = {f"{'k' * length}": torch.randn(3, 4) for length in range(1, 9)}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    _mark(tmp_path)
    reader = TorchDistReader(tmp_path)
    odd = 0
    for key, tensor in state.items():
        with reader.open(key, (1, 0), (2, 3)) as part:
            assert torch.equal(part, tensor[1:, :3])
        odd += any(stored.offset % 4 for stored in reader._stored.values())
    assert odd


def test_a_missing_block_is_refused(tmp_path: Path) -> None:
    write_torch_dist(tmp_path, [_block("w", WHOLE, (0, 0, 0), (1, 6, 4))], {})
    _mark(tmp_path)
    with (
        pytest.raises(UserError, match=r"only 24 of the 48 values of w at \[0, 0, 0\] are stored"),
        TorchDistReader(tmp_path).open("w", (0, 0, 0), (2, 6, 4)),
    ):
        pytest.fail("the slice must not open")


def test_other_formats_are_refused(written: Path) -> None:
    (written / "metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')
    with pytest.raises(UserError, match="its format is 'zarr'"):
        TorchDistReader(written)


def test_a_failing_block_fails_the_save(tmp_path: Path) -> None:
    @contextmanager
    def opened() -> Iterator[torch.Tensor]:
        raise UserError("cut")
        yield WHOLE

    blocks = [
        _block("w", WHOLE, (0, 0, 0), (1, 6, 4)),
        Block("w", (2, 6, 4), (1, 0, 0), (1, 6, 4), torch.float32, opened),
    ]
    with pytest.raises(UserError, match="cut"):
        write_torch_dist(tmp_path, blocks, {}, file_bytes=10)
    assert not (tmp_path / ".metadata").exists()
