"""What ranks read, write and hold at a save and a load is what the plan says."""

from __future__ import annotations

from pathlib import Path

from benchmarks.checkpoints import compare, model_recipe


def test_four_ranks_move_and_hold_what_was_planned(tmp_path: Path) -> None:
    """Two data-parallel ranks of each half of the model. The bounds are those of docs/benchmarks/checkpoints.md."""
    found = compare(tmp_path, model_recipe(tmp_path, 4, layers=8))
    for quantity in ("written", "read", "memory_save", "memory_load"):
        assert 0.85 <= found[quantity]["ratio"] <= 1.15, (quantity, found[quantity])
    # All ranks together read each byte of the checkpoint once; then come headers and tables of contents.
    assert 1 <= found["read_all"] < 1.03
    assert 0.99 < found["size_ratio"] < 1.01
