"""Merges with mergekit, in the Python that it is installed in: `python peer.py JOB.json`.

JOB.json: a list of `{"config": mergekit's configuration, "out": folder, "masks": safetensors file or null}`. DARE's random
masks cannot be equal by themselves: with `masks`, mergekit drops what that file says, found by the hash of a difference's
bytes. Prints one line of JSON a job: processor and wall seconds.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Runs the jobs."""
    import mergekit.sparsify
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors.torch import load_file

    for job in json.loads(Path(sys.argv[1]).read_text()):
        if job.get("masks"):
            masks = load_file(job["masks"])

            def given(tensor: Any, density: float, rescale_norm: Any = None, masks: Any = masks) -> Any:
                mask = masks[hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()]
                return mergekit.sparsify.rescaled_masked_tensor(tensor, mask.to(tensor.dtype), rescale_norm)

            mergekit.sparsify.bernoulli = given
        wall, processor = time.perf_counter(), time.process_time()
        options = MergeOptions(**({"quiet": True, "write_model_card": False} | job.get("options", {})))
        run_merge(MergeConfiguration.model_validate(job["config"]), job["out"], options=options)
        spent = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
        print(json.dumps(spent), flush=True)


if __name__ == "__main__":
    main()
