"""Proofs of runs on a real GPU with Transformer Engine: packed sequences in BF16 and FP8 against the independent
loop in FP32 on the same card. Prints what it measured."""

from __future__ import annotations

import orjson
import pytest

from tests.command_line import emma
from tests.gpu import require_gpus
from tests.tools.prove.small import Small

pytestmark = pytest.mark.gpu

# FP8 kernels need sizes that are multiples of 16; the small model's are.
PRECISIONS = {
    "bf16": "{name: bf16, compute: bf16}",
    "fp8_tensorwise": "{name: fp8_tensorwise, compute: bf16, fp8: tensorwise}",
    "fp8_delayed": "{name: fp8_delayed, compute: bf16, fp8: delayed}",
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_that_has_not_begun_is_proven_on_a_gpu(precision: str, small: Small) -> None:
    cluster = f"cluster={{name: test, gpus_per_node: 1, device: {require_gpus(1)}}}"
    given = small.given(f"gpu-{precision}", cluster, f"precision={PRECISIONS[precision]}")
    answer = emma("train", *given, "--prove", "12", "--json")
    result = orjson.loads(answer.out)
    print(f"{precision}: largest differences {result['largest']}, device {result['device']}")
    assert result["device"] == "cuda"
    assert answer.code == 0, answer.err
