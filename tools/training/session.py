"""What this project does around Megatron's loop, at named seams of `megatron.training.training`.

The loop itself stays Megatron's. A seam is a module-level function that the loop calls; it is wrapped, so that the
original runs unchanged and ours before or after it: metrics at `training_log`, validation at
`post_training_step_callbacks`, requests of team mates at `checkpoint_and_decide_exit`, completion marks and retention
at `save_checkpoint_and_time`, the reset of a phase at `load_checkpoint`, the state before the first step at `train`,
the batch of a skipped step at `dummy_train_step`.
"""

from __future__ import annotations

import functools
import inspect
import math
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.training import get_args, get_timers, get_tokenizer, training

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.recipes.devices import device
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.cost import checkpoint_bytes
from emma.tools.arithmetic.flops import flops_per_token
from emma.tools.runs.checkpoints import (
    checkpoint_folder,
    complete_steps,
    mark_complete,
    prune,
    tracked_step,
)
from emma.tools.runs.metrics import append_metrics, read_metrics
from emma.tools.runs.run_folder import Launch, RunFolder
from emma.tools.runs.safety import Rewind, record_skip, spoilt
from emma.tools.training.dataset import MixInfo, open_dataset
from emma.tools.training.forward import LOSS, ForwardStep
from emma.tools.training.validation import Evaluator

__all__ = ["Session"]

# Seams and the parameters that the wrappers below rely on, in megatron-core 0.19.2.
_SEAMS = {
    "load_checkpoint": ("ddp_model", "optimizer", "opt_param_scheduler"),
    "train": ("forward_step_func", "model", "optimizer", "opt_param_scheduler"),
    "training_log": ("loss_dict", "total_loss_dict", "learning_rate", "iteration"),
    "post_training_step_callbacks": ("model", "optimizer", "opt_param_scheduler", "iteration"),
    "checkpoint_and_decide_exit": ("model", "optimizer", "opt_param_scheduler", "iteration"),
    "save_checkpoint_and_time": ("iteration", "model"),
    "maybe_finalize_async_save": ("blocking",),
    "dummy_train_step": ("data_iterator",),
}


# What a file in the run folder asks for.
_SAVE, _STOP = 1, 2


class Session:
    """State of one rank between the seams."""

    def __init__(self, recipe: Recipe, run: RunFolder, launch: Launch, mix: MixInfo) -> None:
        self.recipe, self.run, self.launch, self.mix = recipe, run, launch, mix
        self.forward_step = ForwardStep()
        self.evaluator: Evaluator | None = None
        self._flops = flops_per_token(recipe.model, recipe.batch.sequence_length, "causal")
        self._peak = device(recipe.cluster.device).peak_tflops(recipe.precision)
        self._learning_rate: float | None = None
        self._losses: list[torch.Tensor] = []
        self._skipped = 0
        self._steps = 0
        self._paused = 0.0
        self._begun = time.perf_counter()
        self._marked = tracked_step(run.checkpoints)

    def install(self) -> None:
        """Wraps the seams.

        Raises:
            UserError: this Megatron has another loop than the one that the seams were written for.
        """
        for name, parameters in _SEAMS.items():
            original = getattr(training, name, None)
            known = tuple(inspect.signature(original).parameters) if callable(original) else ()
            if known[: len(parameters)] != parameters:
                raise UserError(
                    f"megatron.training.training.{name}{known} is not the function of megatron-core 0.19.2. "
                    "Fix: install the pinned version (requirements.lock)"
                )
            wrapper: Callable[..., Any] = getattr(self, f"_{name}")
            setattr(training, name, functools.wraps(original)(functools.partial(wrapper, original)))  # type: ignore[arg-type]

    # --- data ---------------------------------------------------------------------------------------------------

    @property
    def datasets(self) -> Callable[..., tuple[Any, None, None]]:
        """Dataset provider for `pretrain`; each rank opens its own, so nothing is broadcast."""

        def provider(num_samples: list[int], vp_stage: int | None = None) -> tuple[Any, None, None]:
            config = self._dataset_config()
            if self.evaluator is None:
                validation = self.recipe.validation
                names = validation.groups if validation.groups is not None else list(self.mix.groups)
                groups = {
                    name: open_dataset(self.recipe.mix_folder / "validation" / name, config) for name in names
                }
                batch = self.recipe.batch
                self.evaluator = Evaluator(groups, batch.micro, batch.sequence_length, validation.samples)
            return open_dataset(self.recipe.mix_folder / "train", config), None, None

        provider.is_distributed = True  # type: ignore[attr-defined]
        return provider

    def _dataset_config(self) -> GPTDatasetConfig:
        args = get_args()
        return GPTDatasetConfig(
            random_seed=args.seed,
            sequence_length=args.seq_length,
            tokenizer=get_tokenizer(),
            reset_position_ids=args.reset_position_ids,
            reset_attention_mask=args.reset_attention_mask,
            eod_mask_loss=False,
            create_attention_mask=args.create_attention_mask_in_dataloader,
            inter_document_masking=args.dataloader_inter_document_masking,
        )

    # --- seams --------------------------------------------------------------------------------------------------

    def _load_checkpoint(
        self,
        original: Callable[..., Any],
        ddp_model: Any,
        optimizer: Any,
        scheduler: Any,
        *rest: Any,
        **named: Any,
    ) -> tuple[int, float]:
        if self.launch.load.mode != "phase":
            loaded: tuple[int, float] = original(ddp_model, optimizer, scheduler, *rest, **named)
            return loaded
        # The moments come along; where the run stands and how fast it learns are the recipe's. Megatron tells parameter
        # groups apart by their learning rates and would not find the checkpoint's, or keep those it finds.
        args = get_args()
        load = optimizer.load_state_dict
        optimizer.load_state_dict = lambda state: load(_with_rates(state, args.lr, args.min_lr))
        original(ddp_model, optimizer, scheduler, *rest, **named)
        del optimizer.load_state_dict
        scheduler.num_steps = 0
        scheduler.step(increment=0)
        args.consumed_train_samples = args.consumed_valid_samples = args.skipped_train_samples = 0
        return 0, 0

    def _train(
        self,
        original: Callable[..., Any],
        forward_step: Any,
        model: Any,
        optimizer: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        self._learning_rate = training.get_canonical_lr_for_logging(optimizer.param_groups)
        if self.launch.load.mode == "weights" and self.recipe.start.reference is not None:
            self._check_reference(model)
        if get_args().iteration == 0 and self.recipe.validation.at_start:
            self._validate(model, 0)
        self._begun, self._paused = time.perf_counter(), 0.0
        iteration, flops = original(forward_step, model, optimizer, *rest, **named)
        if iteration in self.launch.skip and tracked_step(self.run.checkpoints) != iteration:
            # Megatron saves neither at a skipped step nor, where the interval divides it, after the last one.
            scheduler, data, context = rest[0], rest[1], rest[5]
            training.save_checkpoint_and_time(
                iteration, model, optimizer, scheduler, flops, context, train_data_iterator=data
            )
        return iteration, flops

    def _dummy_train_step(self, original: Callable[..., Any], data_iterator: Any) -> None:
        """Passes over the batch of a skipped step on every rank, in place of Megatron's way.

        Megatron reads it on the first tensor-parallel rank and sends it to the others. Here each rank reads by itself, so
        the others would stay one batch behind from then on, and train on other samples than the first.
        """
        rerun = get_rerun_state_machine()
        while rerun.should_run_forward_backward(data_iterator):
            for iterator in data_iterator if isinstance(data_iterator, list) else [data_iterator]:
                for _ in range(get_num_microbatches()):
                    next(iterator)

    def _training_log(
        self,
        original: Callable[..., Any],
        loss_dict: dict[str, torch.Tensor],
        total_loss_dict: Any,
        learning_rate: float | None,
        iteration: int,
        loss_scale: Any,
        report_memory_flag: Any,
        skipped_iter: int,
        grad_norm: float | None,
        *rest: Any,
        **named: Any,
    ) -> Any:
        reason = (
            spoilt(grad_norm, self.recipe.safety.max_grad_norm) if self.recipe.optimizer.clip_grad else None
        )
        if reason is not None:
            raise Rewind(iteration, reason)
        if LOSS in loss_dict:
            self._losses.append(loss_dict[LOSS].detach())
        self._steps += 1
        self._skipped += int(skipped_iter)
        result = original(
            loss_dict,
            total_loss_dict,
            learning_rate,
            iteration,
            loss_scale,
            report_memory_flag,
            skipped_iter,
            grad_norm,
            *rest,
            **named,
        )
        if iteration % self.recipe.logging.interval == 0 or iteration == self.recipe.schedule.steps:
            self._write_step(iteration, grad_norm)
        # The rate that Megatron passes is already the next step's.
        self._learning_rate = learning_rate
        return result

    def _post_training_step_callbacks(
        self,
        original: Callable[..., Any],
        model: Any,
        optimizer: Any,
        scheduler: Any,
        iteration: int,
        *rest: Any,
    ) -> Any:
        if iteration % self.recipe.validation.interval == 0 or iteration == self.recipe.schedule.steps:
            timers, args = get_timers(), get_args()
            timers("interval-time").stop()
            gathers = training.should_disable_forward_pre_hook(args)
            if gathers:
                training.disable_forward_pre_hook(model, optimizer=optimizer)
            self._validate(model, iteration)
            if gathers:
                training.enable_forward_pre_hook(model)
            timers("interval-time", log_level=0).start(barrier=True)
        return original(model, optimizer, scheduler, iteration, *rest)

    def _checkpoint_and_decide_exit(self, original: Callable[..., bool], *rest: Any, **named: Any) -> bool:
        request = torch.zeros(1, dtype=torch.int32, device="cuda")
        if torch.distributed.get_rank() == 0:
            run = self.run
            request.fill_(_STOP if run.stop_request.exists() else _SAVE if run.save_request.exists() else 0)
        torch.distributed.broadcast(request, 0)
        if request.item() == _STOP:
            # The same way out as a signal: a checkpoint, then the end of the loop.
            signal.raise_signal(signal.SIGTERM)
        if request.item() != _SAVE:
            return original(*rest, **named)
        args = get_args()
        interval, args.save_interval = args.save_interval, 1
        try:
            leaves = original(*rest, **named)
        finally:
            args.save_interval = interval
        if torch.distributed.get_rank() == 0:
            self.run.save_request.unlink(missing_ok=True)
        return leaves

    def _save_checkpoint_and_time(
        self, original: Callable[..., Any], iteration: int, *rest: Any, **named: Any
    ) -> None:
        begun = time.perf_counter()
        self._check_claim(iteration)
        self._check_space(iteration)
        original(iteration, *rest, **named)
        if not self.recipe.checkpoint.asynchronous:
            self._mark()
        self._paused += time.perf_counter() - begun

    def _maybe_finalize_async_save(
        self, original: Callable[..., Any], blocking: bool = False, *rest: Any, **named: Any
    ) -> None:
        original(blocking, *rest, **named)
        if self.recipe.checkpoint.asynchronous:
            self._mark()

    # --- what they do -------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        """Marks the checkpoint that Megatron's tracker file names: it is written last, when all ranks are done."""
        if torch.distributed.get_rank() == 0:
            step, checkpoint = tracked_step(self.run.checkpoints), self.recipe.checkpoint
            if step is not None and step != self._marked:
                self._marked = step
                samples = step * self.recipe.batch.global_
                mark_complete(
                    checkpoint_folder(self.run.checkpoints, step),
                    step=step,
                    consumed_samples=samples,
                    consumed_tokens=samples * self.recipe.batch.sequence_length,
                    mix=self.mix.fingerprint,
                    recipe_sha256=self.recipe.sha256,
                )
                prune(self.run.checkpoints, checkpoint.keep, checkpoint.keep_every)

    def _check_claim(self, iteration: int) -> None:
        """Stops all ranks before a write where another launch has claimed the run."""
        held = torch.ones(1, dtype=torch.int32, device="cuda")
        if torch.distributed.get_rank() == 0:
            held.fill_(int(self.run.holds_claim(self.launch)))
        torch.distributed.broadcast(held, 0)
        if not held.item():
            raise self._claim_lost(iteration)

    def _check_space(self, iteration: int) -> None:
        """Stops all ranks before a save that would fill the disk and leave a part of a checkpoint."""
        short = torch.zeros(2, dtype=torch.float64, device="cuda")
        if torch.distributed.get_rank() == 0:
            need, free = checkpoint_bytes(self.recipe), shutil.disk_usage(self.run.checkpoints).free
            if free < need:
                short[0], short[1] = need, free
        torch.distributed.broadcast(short, 0)
        if short[0].item():
            raise UserError(
                f"{self.run.checkpoints}: the checkpoint of step {iteration} needs {short[0] / 2**30:.1f} GiB, "
                f"{short[1] / 2**30:.1f} GiB are free; nothing is written. Fix: free space, or keep fewer "
                "checkpoints (checkpoint.keep), then start again from the checkpoint before"
            )

    def _claim_lost(self, iteration: int) -> UserError:
        return UserError(
            f"{self.run.writer_file} names another launch: it took this run over. "
            f"Nothing is written at step {iteration}; this launch stops"
        )

    def _validate(self, model: Any, iteration: int) -> None:
        if self.evaluator is None or not self.evaluator.groups:
            return
        begun = time.perf_counter()
        self._check_claim(iteration)
        losses = self.evaluator(model)
        if training.is_last_rank():
            append_metrics(self.run.metrics_file, {"step": iteration, "validation": losses})
            self._alert(iteration, losses)
            writer = training.get_tensorboard_writer()
            for name, loss in losses.items():
                if writer:
                    writer.add_scalar(f"validation/{name}", loss, iteration)
            _log_to_wandb({f"validation/{name}": loss for name, loss in losses.items()}, iteration)
            mean = sum(losses.values()) / len(losses)
            print(f"validation at step {iteration}: mean over {len(losses)} groups {mean:.4f}", flush=True)
        self._paused += time.perf_counter() - begun

    def _check_reference(self, model: Any) -> None:
        """Stops all ranks where the imported weights don't have the base model's loss."""
        assert self.evaluator is not None
        start, reference = self.recipe.start, read_json(self.run.reference_file)
        first = Evaluator(
            self.evaluator.groups,
            self.evaluator.micro_batch,
            self.evaluator.sequence_length,
            reference["samples"],
        )
        losses = first(model)
        worst = torch.zeros(1, dtype=torch.float64, device="cuda")
        for name, loss in losses.items():
            difference = abs(loss - reference["losses"][name])
            # Not a number is not within tolerance either.
            worst = torch.maximum(
                worst, torch.full_like(worst, difference if difference == difference else torch.inf)
            )
        torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        if not worst.item() <= start.reference_tolerance:
            raise UserError(
                f"the loss of {start.checkpoint} on validation samples differs from that of {start.reference} by up to "
                f"{worst.item():.4g} nats a token; start.reference_tolerance is {start.reference_tolerance:g}. Nothing was "
                f"trained. Fix: import the base model anew (`emma convert hf-to-megatron {start.reference} ...`)"
            )
        if torch.distributed.get_rank() == 0:
            print(
                f"step 0: loss equals {start.reference}'s within {worst.item():.2g} nats a token", flush=True
            )

    def _alert(self, iteration: int, losses: dict[str, float]) -> None:
        """Marks the run where a group has lost more against the first validation than the recipe allows."""
        first = next(iter(read_metrics(self.run.metrics_file)[1]))
        for group, bound in self.recipe.validation.alert_above.items():
            nats = losses[group] - first["validation"][group]
            rise = nats / math.log(2) / self.mix.groups[group]["bytes_per_token"]
            if rise > bound and iteration > first["step"]:
                alert = {
                    "step": iteration,
                    "group": group,
                    "rise": rise,
                    "above": bound,
                    "since": first["step"],
                }
                append_metrics(self.run.alerts_file, alert)
                print(
                    f"ALERT: {group} is {rise:.4f} bits a byte worse than at step {first['step']}",
                    flush=True,
                )

    def _write_step(self, iteration: int, grad_norm: float | None) -> None:
        seconds = time.perf_counter() - self._begun - self._paused
        # The slowest rank's wait and the fullest card's memory are the ones that matter.
        lost = training.is_last_rank() and not self.run.holds_claim(self.launch)
        wait, memory = self.forward_step.data_wait_seconds / self._steps, torch.cuda.max_memory_allocated()
        facts = torch.tensor([wait, float(memory), float(lost)], dtype=torch.float32, device="cuda")
        torch.distributed.all_reduce(facts, op=torch.distributed.ReduceOp.MAX)
        if facts[2].item():
            raise self._claim_lost(iteration)
        if training.is_last_rank():
            args, batch = get_args(), self.recipe.batch
            tokens = self._steps * self.recipe.tokens_per_step
            speed = tokens / seconds / args.world_size
            tflops = speed * self._flops / 1e12
            row = {
                "step": iteration,
                "consumed_samples": args.consumed_train_samples,
                "consumed_tokens": args.consumed_train_samples * batch.sequence_length,
                "loss": float(torch.stack([loss.reshape(()) for loss in self._losses]).double().mean()),
                "grad_norm": None if grad_norm is None else float(grad_norm),
                "learning_rate": self._learning_rate,
                "tokens_per_second_per_gpu": speed,
                "tflops_per_gpu_causal": tflops,
                "mfu": None if self._peak is None else tflops / self._peak,
                "memory_gib": float(facts[1]) / 2**30,
                "data_wait_ms": float(facts[0]) * 1000,
                "skipped": self._skipped,
            }
            append_metrics(self.run.metrics_file, row)
            _log_to_wandb(row, iteration)
        self._losses.clear()
        self._steps = self._skipped = 0
        self.forward_step.data_wait_seconds = 0.0
        self._begun, self._paused = time.perf_counter(), 0.0

    def go_back(self, rewind: Rewind) -> None:
        """Records the step to skip and asks the launcher for another launch.

        Raises:
            UserError: the run has gone back as often as the recipe allows (on rank 0, whose failure ends the others).
        """
        if torch.distributed.get_rank() == 0:
            record_skip(self.run.skipped_file, rewind, self.launch.number, self.recipe.safety.rewinds)
            state = {
                "writer": self.launch.writer,
                "state": "rewind",
                "step": rewind.step,
                "reason": rewind.reason,
            }
            write_json(self.run.state_file, state)
        torch.distributed.barrier()

    def close(self) -> None:
        """Says how the launch ended, for the launcher and for the next link of a chain."""
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0 and self.run.holds_claim(self.launch):
            reached = max(complete_steps(self.run.checkpoints), default=0)
            state = "finished" if reached >= self.recipe.schedule.steps else "stopped"
            write_json(self.run.state_file, {"writer": self.launch.writer, "state": state, "step": reached})


def _log_to_wandb(row: Mapping[str, float | None], iteration: int) -> None:
    """Logs to Weights & Biases where the recipe names a project: Megatron has started it on the last rank."""
    writer = training.get_wandb_writer()
    if writer:
        writer.log({name: value for name, value in row.items() if value is not None}, iteration)


def _with_rates(state: Any, peak: float, minimum: float) -> Any:
    """An optimizer's state in which each parameter group has the given learning rates."""
    if isinstance(state, list):
        return [_with_rates(item, peak, minimum) for item in state]
    if not isinstance(state, dict):
        return state
    if "param_groups" in state:
        groups = [{**group, "max_lr": peak, "min_lr": minimum} for group in state["param_groups"]]
        return {**state, "param_groups": groups}
    return {key: _with_rates(value, peak, minimum) for key, value in state.items()}
