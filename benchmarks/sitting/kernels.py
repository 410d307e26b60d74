"""Transformer Engine's kernels of each kind that training needs, against torch in FP32: found broken in seconds, before
anything else takes time. `python -P -m benchmarks.sitting.kernels OUT.json`; exit code 1 if one is wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.sitting.ledger import FAULTS
from emma.base.files import write_json

__all__ = ["main"]

WIDTH, ROWS = 256, 256


def linear(scaling: str | None) -> dict[str, Any]:
    """Norm and product of a layer, forward and backward, in BF16 or FP8."""
    import torch
    import transformer_engine.pytorch as te
    from transformer_engine.common import recipe as recipes

    kinds = {
        "tensorwise": lambda: recipes.Float8CurrentScaling(fp8_format=recipes.Format.HYBRID),
        "delayed": lambda: recipes.DelayedScaling(fp8_format=recipes.Format.HYBRID),
        "blockwise": lambda: recipes.Float8BlockScaling(fp8_format=recipes.Format.E4M3),
    }
    layer = te.LayerNormLinear(
        WIDTH, 2 * WIDTH, bias=False, normalization="RMSNorm", params_dtype=torch.bfloat16, device="cuda"
    )
    rows = torch.randn(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    if scaling is None:
        output = layer(rows)
    else:
        with te.fp8_autocast(enabled=True, fp8_recipe=kinds[scaling]()):
            output = layer(rows)
    output.float().square().mean().backward()
    normed = torch.nn.functional.rms_norm(rows.float(), (WIDTH,), layer.layer_norm_weight.float(), 1e-5)
    exact = torch.nn.functional.linear(normed, layer.weight.float())
    error = float((output.float() - exact).norm() / exact.norm())
    _require(error < 0.1 and bool(torch.isfinite(rows.grad).all()), f"relative error {error:.3f}")
    return {"relative_error": error}


def attention(
    documents: int, tokens: int = 8192, heads: int = 32, groups: int = 8, width: int = 128
) -> dict[str, Any]:
    """Packed causal attention over documents of one length; milliseconds of forward and backward."""
    import torch
    import transformer_engine.pytorch as te

    length = tokens // documents
    layer = te.DotProductAttention(
        heads,
        width,
        num_gqa_groups=groups,
        attention_dropout=0.0,
        qkv_format="thd",
        attn_mask_type="padding_causal",
    )
    parts = [
        torch.randn(tokens, count, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for count in (heads, groups, groups)
    ]
    bounds = torch.arange(0, tokens + 1, length, dtype=torch.int32, device="cuda")
    packed = {
        "cu_seqlens_q": bounds,
        "cu_seqlens_kv": bounds,
        "max_seqlen_q": length,
        "max_seqlen_kv": length,
    }

    def run() -> Any:
        return layer(*parts, qkv_format="thd", attn_mask_type="padding_causal", **packed)

    output = run()
    output.backward(torch.ones_like(output))
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(10):
        run().backward(torch.ones_like(output))
    torch.cuda.synchronize()
    milliseconds = 100 * (time.perf_counter() - begun)
    # The second document alone, or the first of one: what stood before it must not count.
    part = slice(length, 2 * length) if documents > 1 else slice(0, length)
    query, key, value = (tensor[part].detach().float().transpose(0, 1)[None] for tensor in parts)
    repeated = (each.repeat_interleave(heads // groups, 1) for each in (key, value))
    exact = torch.nn.functional.scaled_dot_product_attention(query, *repeated, is_causal=True)[0].transpose(
        0, 1
    )
    error = float((output[part].float().reshape(exact.shape) - exact).abs().max())
    _require(error < 0.05, f"largest error {error:.3f}")
    return {"largest_error": error, "forward_and_backward_ms": milliseconds}


def adam() -> dict[str, Any]:
    """Transformer Engine's optimizer against torch's."""
    import torch
    from transformer_engine.pytorch.optimizers import FusedAdam

    given, gradient = torch.randn(1000, device="cuda"), torch.randn(1000, device="cuda")
    weights = []
    for kind in (FusedAdam, torch.optim.AdamW):
        weight = torch.nn.Parameter(given.clone())
        weight.grad = gradient.clone()
        kind([weight], lr=1e-3, weight_decay=0.1).step()
        weights.append(weight.detach())
    error = float((weights[0] - weights[1]).abs().max())
    _require(error < 1e-5, f"largest difference {error:.1e}")
    return {"largest_difference": error}


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ArithmeticError(what)


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "linear, BF16": lambda: linear(None),
    "linear, FP8 tensorwise": lambda: linear("tensorwise"),
    "linear, FP8 delayed": lambda: linear("delayed"),
    "linear, FP8 blockwise": lambda: linear("blockwise"),
    **{f"attention, {count} documents": lambda count=count: attention(count) for count in (1, 32, 128, 512)},
    "adam": adam,
}


def main(out: Path) -> int:
    """Runs all checks; each result is written as it comes."""
    found: dict[str, Any] = {}
    for name, check in CHECKS.items():
        try:
            found[name] = check()
        except FAULTS as error:
            found[name] = {"fault": f"{type(error).__name__}: {error}"[:500]}
        print(name, found[name], flush=True)
        write_json(out, found)
    return int(any("fault" in result for result in found.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
