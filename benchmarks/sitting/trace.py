"""What one step spends its time on, from a trace of torch's profiler."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

__all__ = ["kinds_of_time"]

# Parts of names as CUDA's profiler gives them; the first that matches counts.
KINDS = {
    "attention": r"sdpa|fmha|flash|attention|softmax_warp",
    "optimizer": r"adam|multi_tensor|l2norm",
    "FP8 casts": r"quantize|amax|fp8|cast_?trans|scaling",
    "matrix products": r"gemm|nvjet|cutlass|xmma|splitk|cublas|mm$|linear|matmul|bmm",
    "norms": r"norm|ln_fwd|ln_bwd",
    "rotary embedding": r"rope|rotary",
    "communication": r"nccl|all_reduce|allgather|reduce_scatter|c10d|gloo",
    "loss": r"cross_entropy|log_softmax|logits",
    "copies": r"memcpy|memset|copy|to$|clone",
    "elementwise": r"elementwise|triton|vectorized|reduce|index|embedding|silu|mul|add|cat|sum",
}
_LONGEST = 25


def kinds_of_time(trace: Path) -> dict[str, Any]:
    """Milliseconds of device time by kind of kernel, the longest kernels, the share of the span in which any ran, and
    how often the host waited. Of a trace without a GPU, operators on the CPU take the kernels' place.

    Raises:
        ValueError: the trace holds neither.
    """
    with gzip.open(trace, "rt") as handle:
        events = json.load(handle)["traceEvents"]
    work = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    place = "GPU" if work else "CPU"
    work = work or [event for event in events if event.get("cat") == "cpu_op"]
    if not work:
        raise ValueError(f"{trace}: holds no kernels and no operators")
    begin, end = min(event["ts"] for event in work), max(event["ts"] + event["dur"] for event in work)
    busy, reached = 0.0, begin
    for event in sorted(work, key=lambda event: event["ts"]):
        stop = event["ts"] + event["dur"]
        busy += max(0.0, stop - max(reached, event["ts"]))
        reached = max(reached, stop)
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, list[float]] = defaultdict(list)
    for event in work:
        found = (kind for kind, pattern in KINDS.items() if re.search(pattern, event["name"], re.IGNORECASE))
        kinds[next(found, "other")] += event["dur"] / 1000
        names[event["name"][:160]].append(event["dur"] / 1000)
    waits = [
        event["name"]
        for event in events
        if event.get("cat") == "cuda_runtime" and "Synchronize" in event["name"]
    ]
    longest = sorted(names.items(), key=lambda item: -sum(item[1]))[:_LONGEST]
    return {
        "place": place,
        "span_ms": (end - begin) / 1000,
        "busy_share": busy / (end - begin),
        "kinds_ms": dict(
            sorted(((kind, round(ms, 3)) for kind, ms in kinds.items()), key=lambda item: -item[1])
        ),
        "host_waits": {name: waits.count(name) for name in sorted(set(waits))},
        "longest": [{"name": name, "ms": round(sum(each), 3), "calls": len(each)} for name, each in longest],
    }
