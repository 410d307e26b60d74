"""Damage to the files of a checkpoint, as disks do it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

__all__ = ["DAMAGES", "damage"]


def _zero_block(path: Path, place: random.Random) -> None:
    data = bytearray(path.read_bytes())
    # Where a block holds zeros already, nothing would be damaged.
    block = place.choice([b for b in range(0, len(data), 4096) if any(data[b : b + 4096])])
    data[block : block + 4096] = bytes(len(data[block : block + 4096]))
    path.write_bytes(data)


def _flip_a_bit(path: Path, place: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[place.randrange(len(data))] ^= 1 << place.randrange(8)
    path.write_bytes(data)


def _truncate(path: Path, place: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: place.randrange(path.stat().st_size)])


def _zero(path: Path, place: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _delete(path: Path, place: random.Random) -> None:
    path.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "zeroed block": _zero_block,
    "flipped bit": _flip_a_bit,
    "truncated": _truncate,
    "zeroed": _zero,
    "missing": _delete,
}


def damage(checkpoint: Path, kind: str, place: random.Random) -> Path:
    """Damages one file of a checkpoint, its completion mark included; returns it."""
    path = place.choice(sorted(p for p in checkpoint.rglob("*") if p.is_file()))
    DAMAGES[kind](path, place)
    return path
