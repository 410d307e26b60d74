"""Each rank saves and loads the rows of its own shard of the distributed optimizer.

In the format that can be resharded (`--dist-ckpt-optim-fully-reshardable`) Megatron gathers main weights and
moments of a whole model-parallel shard on every data-parallel rank before each save: 12 bytes of host memory for
each weight of the shard, on every rank (48 GB a rank for an 8B model at tensor-parallel size 2). A load takes as
much. Yet a rank needs, and has, only its own share.

A shard is cut out of the flat gradient buffer, so it begins and ends inside rows of its parameters, while a
checkpoint holds blocks of whole rows. Here a row belongs to the rank whose shard holds its first element. Before
a save, the other ranks send it the rest of that row, at most one row per parameter and rank; after a load it sends
the rest back. Nothing else is exchanged. Rows are counted from where the buffer says that the parameter starts, so
padding between buckets moves nothing (NVIDIA/Megatron-LM#5077).
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from itertools import count
from typing import Any

from emma.megatron_patches.patch import Decision, Patch, Target

__all__ = ["PATCH", "Blocks", "Share", "blocks_of", "shares_of"]

_OPEN_FILES = 65_536

OPTIMIZER = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
BUILD = Target(
    f"{OPTIMIZER}.sharded_param_state_fully_reshardable",
    "self model_sharded_state_dict is_loading metadata",
)
LOAD = Target(f"{OPTIMIZER}.load_parameter_state_from_fully_reshardable", "self state_dict")


@dataclass(frozen=True)
class Share:
    """What one data-parallel rank has of a parameter: elements of its optimizer shard, and rows of the file."""

    rank: int
    start: int
    """First element of the flat parameter in the rank's shard."""
    end: int
    """Element after its last."""
    first: int
    """First row that begins in the shard."""
    last: int
    """Row after the last that begins there."""
    owner: int | None
    """Rank of the row that the shard's first element continues; None if the shard begins with a row."""

    def head_size(self, width: int) -> int:
        """Elements at its beginning that belong to the owner's last row."""
        return min(self.end, self.first * width) - self.start


def shares_of(start: int, end: int, bucket: int, shard: int, width: int) -> list[Share]:
    """Shares of a parameter in the order of ranks.

    Args:
        start: its first element in the buffer.
        end: the element after its last.
        bucket: first element of its bucket, which is cut into equal shards, one per rank.
        shard: elements of a shard.
        width: elements of a row.
    """
    found: list[Share] = []
    for rank in range((start - bucket) // shard, (end - bucket - 1) // shard + 1):
        low = max(0, bucket + rank * shard - start)
        high = min(end - start, bucket + (rank + 1) * shard - start)
        first, last = -(-low // width), -(-high // width)
        owner = None
        if low % width:
            owner = next(before.rank for before in reversed(found) if before.last > before.first)
        found.append(Share(rank, low, high, first, last, owner))
    return found


@dataclass(frozen=True)
class Blocks:
    """A parameter of a model-parallel rank: where its rows lie in the checkpoint's tensors, and who has which."""

    index: int
    """Number of the parameter in the optimizer's state."""
    parameter: Any
    width: int
    """Elements of a row."""
    sharded: Any
    """Megatron's ShardedTensor of the parameter, or the factory that makes several of it (gate and up)."""
    shares: list[Share]

    def own(self, rank: int) -> Share | None:
        """The share of a rank, if it has one."""
        return next((share for share in self.shares if share.rank == rank), None)

    def tails(self, rank: int) -> list[Share]:
        """Shares that begin inside a row of the rank's."""
        return [share for share in self.shares if share.owner == rank]

    def pieces(self, key: str, share: Share, rows: Any, instance: int) -> list[Any]:
        """ShardedTensors of a rank's rows.

        Args:
            key: name of the state: `param`, `exp_avg`, `exp_avg_sq`.
            share: the rank's.
            rows: their elements, flat, FP32.
            instance: number of the distributed optimizer's instance; the others hold copies.
        """
        import torch
        from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

        shape, width = tuple(self.parameter.shape), self.width
        name = f"optimizer.state.{key}.{self.sharded.key}"
        copies = self.sharded.replica_id
        replica = (*(copies[:2] if isinstance(copies, tuple) else (copies, 0)), instance)
        found = []
        if isinstance(self.sharded, ShardedTensorFactory):
            # Which rows a part holds is told by where its view of a tensor without memory begins.
            whole = torch.empty(shape, device="meta")
            parts = self.sharded.build_fn(name, whole, replica, None)
        else:
            parts = [self.sharded]
        for part in parts:
            if tuple(part.data.shape[1:]) != shape[1:] or part.flattened_range is not None:
                raise ValueError(f"{name}: cut in another direction than by rows")
            begin = part.data.storage_offset() // width if part is not self.sharded else 0
            low, high = max(share.first, begin), min(share.last, begin + part.data.shape[0])
            if high <= low:
                continue
            axis = part.prepend_axis_num
            offset = list(part.global_offset)
            offset[axis] += low - begin
            local = (1,) * axis + (high - low, *shape[1:])
            found.append(
                ShardedTensor(
                    name,
                    rows[(low - share.first) * width : (high - share.first) * width].view(local),
                    torch.float32,
                    local,
                    part.global_shape,
                    tuple(offset),
                    None,
                    replica,
                    allow_shape_mismatch=part.allow_shape_mismatch,
                )
            )
        return found


def blocks_of(optimizer: Any, sharded: Any) -> list[Blocks]:
    """All parameters of a distributed optimizer, in the order in which its state counts them.

    Args:
        optimizer: the distributed optimizer of one rank.
        sharded: the model's sharded state, whose tensors are the parameters themselves.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories

    tensors, _ = extract_sharded_tensors_and_factories(sharded)
    by_parameter = {entry.data: entry for entry in nested_values(tensors)}
    found, numbers = [], count()
    for buffer in optimizer.buffers:
        for parameter, (start, end, bucket) in buffer.param_index_map.items():
            if parameter not in by_parameter:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is not in the model's state")
            whole = buffer.buckets[bucket]
            shard = whole.grad_data.numel() // optimizer.data_parallel_group.size()
            width = (end - start) // parameter.shape[0]
            shares = shares_of(start, end, whole.offset, shard, width)
            found.append(Blocks(next(numbers), parameter, width, by_parameter[parameter], shares))
    # A load is told values only.
    optimizer.emma_blocks = found
    return found


class _Parcels:
    """Pieces of rows on their way between the ranks of a group: announced, exchanged at once, taken in order."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._outgoing: list[list[Any]] = [[] for _ in range(group.size())]
        self._sizes = [0] * group.size()
        self._received: list[Any] = []

    def send(self, rank: int, piece: Any) -> None:
        """Adds flat FP32 elements for another rank."""
        self._outgoing[rank].append(piece)

    def expect(self, rank: int, size: int) -> None:
        """Announces that another rank will send as many elements."""
        self._sizes[rank] += size

    def exchange(self) -> None:
        """Sends and receives everything; all ranks of the group call it."""
        import torch

        none = torch.empty(0, dtype=torch.float32)
        packed = torch.cat([none, *(piece.cpu() for pieces in self._outgoing for piece in pieces)]).cuda()
        lengths = [sum(piece.numel() for piece in pieces) for pieces in self._outgoing]
        arrived = torch.empty(sum(self._sizes), dtype=torch.float32).cuda()
        torch.distributed.all_to_all_single(arrived, packed, self._sizes, lengths, group=self._group)
        self._received = list(arrived.cpu().split(self._sizes))

    def take(self, rank: int, size: int) -> Any:
        """The next elements that a rank sent."""
        taken, self._received[rank] = self._received[rank].tensor_split([size])
        return taken


def _keys(optimizer: Any) -> tuple[str, ...]:
    return ("param", *optimizer.optimizer_state_keys)


def rows_to_save(optimizer: Any, sharded: Any) -> dict[int, Any]:
    """The optimizer's sharded state: copies in host memory of the rows that are this rank's."""
    import torch

    group, found = optimizer.data_parallel_group, blocks_of(optimizer, sharded)
    me, parcels = group.rank(), _Parcels(group)
    rows: dict[tuple[int, str], Any] = {}
    for blocks in found:
        own, tails = blocks.own(me), blocks.tails(me)
        states = optimizer._get_main_param_and_optimizer_states(blocks.parameter) if own else {}
        for key in _keys(optimizer):
            if own:
                flat = states[key].detach().reshape(-1).float()
                begin = own.first * blocks.width
                rows[blocks.index, key] = mine = torch.empty((own.last - own.first) * blocks.width)
                mine[: max(0, own.end - begin)] = flat[begin - own.start :]
                if own.owner is not None:
                    parcels.send(own.owner, flat[: begin - own.start])
            for tail in tails:
                parcels.expect(tail.rank, tail.head_size(blocks.width))
    parcels.exchange()
    state: dict[int, Any] = {}
    for blocks in found:
        if not (own := blocks.own(me)):
            continue
        for key in _keys(optimizer):
            mine, begin = rows.pop((blocks.index, key)), own.first * blocks.width
            for tail in blocks.tails(me):
                size = tail.head_size(blocks.width)
                mine[tail.start - begin : tail.start - begin + size] = parcels.take(tail.rank, size)
            pieces = blocks.pieces(key, own, mine, optimizer.distributed_optimizer_instance_id)
            if len(pieces) > 1:
                # The writer copies what shares its memory, and would hold all of it twice.
                for piece in pieces:
                    piece.data = piece.data.clone()
            state.setdefault(blocks.index, {})[key] = dict(enumerate(pieces))
    return state


def rows_to_load(optimizer: Any, sharded: Any) -> dict[Any, Any]:
    """The same without values, and under `rows` the memory that the pieces are views of, for `load_rows`."""
    import torch
    from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject

    me = optimizer.data_parallel_group.rank()
    rows: dict[tuple[int, str], Any] = {}
    # Never empty: a rank whose shard is padding still takes part in the exchange.
    state: dict[Any, Any] = {"rows": LocalNonpersistentObject(rows)}
    for blocks in blocks_of(optimizer, sharded):
        if not (own := blocks.own(me)):
            continue
        for key in _keys(optimizer):
            rows[blocks.index, key] = mine = torch.empty((own.last - own.first) * blocks.width)
            pieces = blocks.pieces(key, own, mine, optimizer.distributed_optimizer_instance_id)
            state.setdefault(blocks.index, {})[key] = dict(enumerate(pieces))
    return state


def load_rows(optimizer: Any, state: dict[Any, Any]) -> None:
    """Puts loaded rows, and what other ranks have loaded of the shard, into the optimizer.

    Raises:
        ValueError: values are missing.
    """
    import torch

    group, found, rows = optimizer.data_parallel_group, optimizer.emma_blocks, state.get("rows", {})
    me, parcels = group.rank(), _Parcels(group)
    for blocks in found:
        if not (own := blocks.own(me)):
            continue
        for key in _keys(optimizer):
            size, begin, done = (own.last - own.first) * blocks.width, own.first * blocks.width, 0
            mine = rows.setdefault((blocks.index, key), torch.empty(size))
            # Loaded in place, unless another instance of the optimizer has read and sent them.
            for _, piece in sorted(state.get(blocks.index, {}).get(key, {}).items()):
                place = mine[done : done + piece.numel()]
                if place.data_ptr() != piece.data_ptr():
                    place.copy_(piece.reshape(-1))
                done += piece.numel()
            if done != size:
                raise ValueError(f"{done} of {size} elements of {key} {blocks.sharded.key} were loaded")
            for tail in blocks.tails(me):
                cut = tail.start - begin
                parcels.send(tail.rank, mine[cut : cut + tail.head_size(blocks.width)])
            if own.owner is not None:
                parcels.expect(own.owner, own.head_size(blocks.width))
    parcels.exchange()
    for blocks in found:
        if not (own := blocks.own(me)):
            continue
        states = {}
        for key in _keys(optimizer):
            mine, begin = rows.pop((blocks.index, key)), own.first * blocks.width
            states[key] = mine[: max(0, own.end - begin)]
            if own.owner is not None:
                head = parcels.take(own.owner, own.head_size(blocks.width))
                states[key] = torch.cat([head, states[key]])
        optimizer._set_main_param_and_optimizer_states(blocks.parameter, states)


def install() -> None:
    """Replaces the two methods of Megatron's distributed optimizer."""
    import torch

    def build(
        self: Any, model_sharded_state_dict: Any, is_loading: bool = False, metadata: Any = None
    ) -> Any:
        with torch.no_grad():
            return (rows_to_load if is_loading else rows_to_save)(self, model_sharded_state_dict)

    def load(self: Any, state_dict: Any) -> None:
        with torch.no_grad():
            load_rows(self, state_dict)

    # A writer in the background is handed each piece as an open file: hundreds, where whole tensors were dozens.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    BUILD.replace(build)
    LOAD.replace(load)


PATCH = Patch(
    name="optimizer-rows",
    targets=(BUILD, LOAD),
    versions={"megatron-core": ("0.19.2",), "torch": ("2.11.0", "2.12.1", "2.13.0")},
    reason="a save gathers main weights and moments of the whole model-parallel shard in the host memory of every "
    "rank, and a load takes as much; each rank needs its own share only",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/core/optimizer/distrib_optimizer.py",
    condition=lambda machine: Decision(True, "Megatron gathers what only one rank needs"),
    install=install,
)
