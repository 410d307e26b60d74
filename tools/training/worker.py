"""One rank of a run: `python -P -m emma.tools.training.worker RUN_FOLDER`, started by torchrun or srun.

Learns from its environment which launch it is, reads from the run folder what the launcher decided, applies the Megatron patches that this machine needs, and
hands over to Megatron's own `pretrain`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from emma.base.errors import UserError
from emma.base.extras import explain_missing
from emma.base.files import write_json
from emma.base.system_errors import report
from emma.recipes.load import load_recipe
from emma.tools.runs.guard import guard
from emma.tools.runs.heartbeat import Heartbeat
from emma.tools.runs.run_folder import RunFolder

__all__ = ["main", "train"]


def main(arguments: list[str]) -> int:
    """Entry point of a rank."""
    if len(arguments) != 1:
        print("usage: python -P -m emma.tools.training.worker RUN_FOLDER", file=sys.stderr)
        return 2
    try:
        with explain_missing("train"):
            _rank_from_slurm()
            train(Path(arguments[0]))
    except BaseException as error:
        # torch wraps what is raised while it loads a checkpoint, and Megatron leaves by `sys.exit`.
        from emma.megatron_patches.inert_loading import refusal

        if (code := report(error if isinstance(error, UserError) else refusal() or error)) is None:
            raise
        return code
    return 0


def train(folder: Path) -> None:
    """Trains to the end of the schedule or until a signal; needs RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
    MASTER_PORT.

    Raises:
        UserError: the mix or the checkpoint does not fit the recipe.
        DisplacedError: another launch has taken the run over.
    """
    run = RunFolder(folder)
    launch = run.own_launch()
    fence = run.fence(launch)
    fence.check()
    heartbeat = Heartbeat(Path(launch.logs), writes=os.environ["RANK"] == "0")
    guard(fence, heartbeat)

    from emma import megatron_patches

    megatron_patches.apply()

    import torch
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    from emma.megatron_patches.inert_loading import refusal
    from emma.tools.runs.safety import Rewind
    from emma.tools.runs.set_aside import Damaged
    from emma.tools.training.arguments import megatron_arguments
    from emma.tools.training.context import divide_heads
    from emma.tools.training.dataset import read_mix
    from emma.tools.training.frozen import freeze_all_but
    from emma.tools.training.network import configure_model
    from emma.tools.training.proven import refuse_unproven
    from emma.tools.training.session.ending import record_damage, record_end, record_rewind
    from emma.tools.training.session.session import Session
    from emma.tools.training.vocabulary import mask_padding

    recipe = load_recipe(folder)
    mix = read_mix(recipe.mix_folder)
    refuse_unproven(recipe)
    if recipe.cluster.device != "cpu" and not torch.cuda.is_available():
        raise UserError(
            f"cluster.device: {recipe.cluster.device}, but this node shows no GPU (`emma doctor` says more). "
            "Fix: exclude the node, or choose a cluster with device: cpu"
        )
    tensorboard = run.tensorboard if recipe.logging.tensorboard else None
    sys.argv = [
        "emma-train",
        *megatron_arguments(recipe, launch.load, mix.end_id, fence.saves, tensorboard, launch.skip),
    ]
    fence.check()  # imports take long
    if os.environ["RANK"] == "0":
        write_json(Path(launch.logs) / "arguments.json", sys.argv[1:])
    args = parse_and_validate_args()
    model_config = gpt_config_from_args(args)
    # Into the checkpoints' arguments, which alone do not say all of another architecture.
    args.emma_architecture = recipe.model.architecture
    configure_model(model_config, recipe.model)
    model_config.pre_wrap_hooks = [
        *model_config.pre_wrap_hooks,
        partial(mask_padding, vocab_size=recipe.model.vocab_size),
    ]
    if recipe.parallelism.context > 1 and recipe.batch.document_masking:
        divide_heads(model_config, recipe.batch.sequence_length)
    if recipe.train is not None:
        freeze_all_but(recipe.train.only)
    session = Session(recipe, run, launch, mix, heartbeat)
    session.install()
    try:
        pretrain(
            pretrain_cfg_container_from_args(args, model_config),
            session.datasets,
            ModelType.encoder_or_decoder,
            session.forward_step,
        )
    except SystemExit as stop:
        # Megatron leaves its loop by `sys.exit` after the checkpoint that a signal asked for.
        if stop.code not in (0, None) or refusal() is not None:
            raise
    except Rewind as rewind:
        record_rewind(recipe, run, launch, rewind)
        return
    except Damaged as damaged:
        record_damage(run, launch, damaged)
        return
    heartbeat.enter("end")
    record_end(recipe, run, launch, session.guard.decision)


def _rank_from_slurm() -> None:
    """torch's rank variables from Slurm's, where srun started this process."""
    if "RANK" in os.environ or "SLURM_PROCID" not in os.environ:
        return
    env = os.environ
    # Job scripts set the address, since a container has no `scontrol`.
    if "MASTER_ADDR" not in env:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", env["SLURM_JOB_NODELIST"]],
            capture_output=True,
            text=True,
            check=True,
        )
        env["MASTER_ADDR"] = listed.stdout.split()[0]
    # Jobs that share a node must not meet on one port.
    env.setdefault("MASTER_PORT", str(20000 + int(env["SLURM_JOB_ID"]) % 20000))
    env.update(RANK=env["SLURM_PROCID"], WORLD_SIZE=env["SLURM_NTASKS"], LOCAL_RANK=env["SLURM_LOCALID"])


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
