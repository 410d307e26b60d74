"""All that is worth measuring on one GPU, within a given time, in the order of its worth.

    python -P -m benchmarks.sitting [--seconds 480] [--out build/gpu]
    python -P -m benchmarks.sitting --rehearse      # the same stages with a tiny model, on a machine without a GPU

Stages: what the machine has; Transformer Engine's kernels against torch; the proof that documents see only themselves; the
other tests marked gpu; speed, memory and losses of the 8B shape with as many layers as fit, in BF16 and FP8; fewer layers,
from which the time of a layer follows; a profile of one step; what each choice of a production run costs; the overhead over
Megatron's own loop. `results.json` in the output folder is written anew after each stage, and a stage that fails or finds no
time costs its own result only. Nothing is downloaded, and no checkpoint is written.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import train_gpu
from benchmarks.gpus import Gpus, find_gpus
from benchmarks.sitting.kernels import CHECKS
from benchmarks.sitting.ledger import FAULTS, Ledger, PartlyFailedError, run_command
from benchmarks.sitting.outcomes import gpu_tests, run_tests
from benchmarks.sitting.speed import OutOfMemoryError, Timing, per_layer, price, train
from benchmarks.sitting.trace import kinds_of_time
from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json
from emma.recipes.load import load_recipe

__all__ = ["main"]

STEPS = 2000
"""Of the schedule, more than any run gets to."""
MASKING = "tests/tools/training/test_gpu_masking.py"
"""Whether documents see only themselves: a sitting's most important test."""


@dataclass(frozen=True)
class Plan:
    """What differs between a sitting and its rehearsal."""

    precisions: tuple[str, ...]
    """The first is the one that the others are compared with."""
    layers: int
    few: int
    batch: int
    timing: Timing
    masking: tuple[str, ...]
    tests: tuple[str, ...]
    prices: dict[str, tuple[str, ...]]
    """Each choice, and the overrides that take it back."""
    patience: float = 1.0
    """How many times as long as on a GPU machine a stage may take."""
    options: tuple[str, ...] = ()
    overrides: tuple[str, ...] = field(default=())


GPU = Plan(
    precisions=("bf16", "fp8_tensorwise", "fp8_blockwise"),
    layers=8,
    few=4,
    batch=4,
    timing=Timing(warm=8, steps=16),
    masking=("-m", "gpu", MASKING),
    tests=("-m", "gpu", *(path for path in gpu_tests() if path != MASKING)),
    prices={
        "masked documents": ("batch.document_masking=false",),
        "FP32 gradient sums": ("precision.grad_reduce_fp32=false",),
        "samples read ahead": ("megatron_args={num-workers: 0}",),
        "gradients added in the product": ("megatron_args={no-gradient-accumulation-fusion: true}",),
        "fused loss": ("megatron_args={cross-entropy-loss-fusion: false}",),
    },
)
REHEARSAL = Plan(
    precisions=("fp32",),
    layers=4,
    few=2,
    batch=2,
    timing=Timing(warm=3, steps=5),
    masking=("tests/tools/training/test_forward.py", "-m", "not gpu"),
    tests=("-m", "gpu", *gpu_tests(), "--collect-only"),
    prices={"masked documents": ("batch.document_masking=false",)},
    patience=4.0,
    options=("--model", "tiny", "--sequence-length", "256"),
    overrides=("precision=fp32", "model.vocab_size=16384"),
)


def main(arguments: Sequence[str]) -> int:
    """Measures what there is time for; exit code 1 if a stage failed, 2 with one message if nothing can be measured."""
    parser = argparse.ArgumentParser(
        prog="python -P -m benchmarks.sitting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=480.0, help="for the whole sitting (default 480)")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="for results.json and log.txt")
    parser.add_argument("--without", nargs="+", default=[], metavar="STAGE",
                        help="stages to leave out, by their names or how these begin, e.g. after a first sitting: "
                        "--without kernels masking tests")  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with a tiny model")
    options = parser.parse_args(arguments)
    try:
        gpus = Gpus("cpu", 1, None) if options.rehearse else find_gpus()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    work = Path(tempfile.mkdtemp(prefix="sitting-"))
    try:
        plan = REHEARSAL if options.rehearse else GPU
        return _sit(Ledger(options.out, options.seconds, options.without, plan.patience), gpus, work, plan)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        # A command that was killed may leave processes behind which still write.
        shutil.rmtree(work, ignore_errors=True)


def _sit(ledger: Ledger, gpus: Gpus, work: Path, plan: Plan) -> int:
    words = ["--steps", str(STEPS), "--global-batch", str(plan.batch), *plan.options, *plan.overrides]
    bench = train_gpu.write_run(work / "bench", train_gpu.parse(words), gpus)
    faults: list[BaseException] = []
    data = threading.Thread(target=_prepare, args=(bench, plan, faults), daemon=True)
    data.start()  # beside the tests, which leave processors idle
    ledger.stage("environment", 20, 60, lambda limit: _environment(ledger, work, limit))
    if gpus.device == "cpu":
        ledger.leave_out("kernels", "Transformer Engine's kernels need a GPU")
    else:
        ledger.stage("kernels", 20, 90, lambda limit: _kernels(ledger, work, limit))
    ledger.stage("masking", 40, 120, lambda limit: run_tests(ledger, work, plan.masking, limit))
    ledger.stage("tests", 60, 170, lambda limit: run_tests(ledger, work, plan.tests, limit))
    ledger.stage("data", 10, 120, lambda limit: _wait(data, faults, limit))
    if ledger.results["data"]["status"] == "done":
        _speeds(ledger, bench, work, plan)
        if gpus.device != "cpu":
            ledger.stage("overhead", 150, 260, lambda limit: _overhead(ledger, work, plan, limit))
        else:
            ledger.leave_out("overhead", "benchmarks.train_cpu measures it on a CPU")
    done = Counter(result["status"].split(":")[0] for result in ledger.results.values())
    ledger.say(f"{dict(done)}; {max(ledger.left, 0):.0f} s left; {ledger.file}")
    return 1 if done["failed"] else 0


# --- the machine and the tests ---------------------------------------------------------------------------------------


def _environment(ledger: Ledger, work: Path, limit: float) -> dict[str, Any]:
    fields = "name,memory.total,driver_version,clocks.max.sm,power.limit"
    card = _said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    found: dict[str, Any] = {
        "card": card and dict(zip(fields.split(","), card.splitlines()[0].split(", "), strict=False)),
        # A copy of the working tree need not have the repository.
        "commit": _said("git", "rev-parse", "HEAD"),
        # Triton compiles with the one, Transformer Engine's kernels are published compiled.
        "compilers": {name: shutil.which(name) for name in ("cc", "gcc", "clang", "nvcc")},
    }
    code, said = run_command(ledger, ["-m", "emma.cli", "doctor", "--json"], limit)
    found |= {"exit_code": code, "doctor": _json(said)}
    if code:
        raise PartlyFailedError(f"emma doctor: {'; '.join(found['doctor']['problems'])}", found)
    return found


def _said(*command: str) -> str | None:
    """What a command prints; None where there is no such command, or it failed."""
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def _json(text: str) -> Any:
    """The JSON object in a command's output, behind whatever libraries said before it."""
    import orjson

    try:
        return orjson.loads(text[text.index("{") : text.rindex("}") + 1])
    except ValueError:
        raise CheckFailedError(f"no JSON: {text[-2000:]}") from None


def _kernels(ledger: Ledger, work: Path, limit: float) -> dict[str, Any]:
    out = work / "kernels.json"
    end = time.monotonic() + limit
    code, said = run_command(
        ledger, ["-m", "benchmarks.sitting.kernels", str(out)], limit + 5, lambda: time.monotonic() > end
    )
    if not out.is_file():
        raise CheckFailedError(f"exit code {code}: {said[-2000:]}")
    found: dict[str, Any] = read_json(out)
    if code != 0:
        lost = [name for name in CHECKS if "fault" in found.get(name, {"fault": "not reached"})]
        raise PartlyFailedError(f"exit code {code}; wrong, broken or not reached: {', '.join(lost)}", found)
    return found


def _prepare(bench: train_gpu.Bench, plan: Plan, faults: list[BaseException]) -> None:
    try:
        train_gpu.prepare_data(bench, plan.layers, plan.precisions[0])
    except (UserError, *FAULTS) as error:
        faults.append(error)


def _wait(data: threading.Thread, faults: list[BaseException], limit: float) -> None:
    data.join(limit)
    if data.is_alive() or faults:
        raise CheckFailedError(str(faults[0]) if faults else f"not made in {limit:.0f} s")


# --- speed -----------------------------------------------------------------------------------------------------------


def _speeds(ledger: Ledger, bench: train_gpu.Bench, work: Path, plan: Plan) -> None:
    first, layers = plan.precisions[0], plan.layers

    def run(
        name: str, precision: str, count: int, *overrides: str, needs: float = 45.0
    ) -> dict[str, Any] | None:
        result: dict[str, Any] | None = ledger.stage(
            name, needs, 120, lambda limit: train(
                ledger, bench, plan.timing, name.replace(" ", "-").replace(",", ""), precision, count, overrides, limit
            )
        )  # fmt: skip
        return result

    deep: dict[str, dict[str, Any] | None] = {}
    while layers > plan.few:
        deep[first] = run(f"{first}, {layers} layers", first, layers)
        if OutOfMemoryError.SAYS not in ledger.results[f"{first}, {layers} layers"]["status"]:
            break
        layers -= 2
    for precision in plan.precisions[1:] if layers > plan.few else ():
        deep[precision] = run(f"{precision}, {layers} layers", precision, layers)
    base = run(f"{first}, {plan.few} layers", first, plan.few)
    whole = load_recipe(str(bench.run), bench.overrides).model.layers
    many = deep.get(first)
    if base is not None and many is not None:
        ledger.stage("per layer", 0, 5, lambda _: per_layer(many, base, whole))
    ledger.stage("profile", 45, 120, lambda limit: _profile(ledger, bench, plan, limit))
    for choice, overrides in plan.prices.items():
        other = run(f"without {choice}", first, plan.few, *overrides)
        if base is not None and other is not None:
            ledger.stage(f"price of {choice}", 0, 5, lambda _, other=other: price(base, other))
    if len(plan.precisions) > 1:
        second = plan.precisions[1]
        shallow, more = run(f"{second}, {plan.few} layers", second, plan.few), deep.get(second)
        if shallow is not None and more is not None:
            ledger.stage(f"per layer, {second}", 0, 5, lambda _: per_layer(more, shallow, whole))


def _profile(ledger: Ledger, bench: train_gpu.Bench, plan: Plan, limit: float) -> dict[str, Any]:
    """One step that is not timed, under torch's profiler."""
    step = plan.timing.warm + plan.timing.steps - 2
    trace = bench.folder / "runs" / "profile" / "torch_profile" / "rank-0.json.gz"
    overrides = (
        "logging.tensorboard=true",
        "megatron_args={profile: true, use-pytorch-profiler: true, "
        f"profile-step-start: {step}, profile-step-end: {step + 1}}}",
    )
    first = plan.precisions[0]
    train(ledger, bench, plan.timing, "profile", first, plan.few, overrides, limit, trace)
    return {"layers": plan.few, "precision": first, **kinds_of_time(trace)}


def _overhead(ledger: Ledger, work: Path, plan: Plan, limit: float) -> Any:
    """Ours between two runs of Megatron's own loop, with few layers, where what a step costs once weighs most."""
    words = ["--folder", str(work / "overhead"), "--precision", plan.precisions[0], "--layers", str(plan.few)]
    words += ["--steps", "28", "--global-batch", str(plan.batch), "megatron_args={no-save-optim: true}"]
    code, said = run_command(ledger, ["-m", "benchmarks.train_gpu", *words], limit)
    if code:
        raise CheckFailedError(f"exit code {code}: {said[-2000:]}")
    return said.strip().splitlines()[-12:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
