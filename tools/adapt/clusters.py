"""The cluster of a first run: a shipped one, a file, or this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.recipes.compose import list_names, nearest
from emma.recipes.devices import device_names
from emma.recipes.load import load_section
from emma.recipes.schema.hardware import Cluster
from emma.tools.adapt.yaml_text import Said
from emma.tools.doctor import find_gpus

__all__ = ["HERE", "choose_cluster"]

HERE = "here"


def choose_cluster(choice: str, slurm: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Values of the cluster file.

    Args:
        choice: a shipped cluster, the path of a file, or `here`.
        slurm: settings of `cluster.slurm`, such as `account`.
        folder: of the file that is written.

    Raises:
        UserError: there is no such cluster; it requires a setting that is not given; this machine's GPUs are of an unknown kind.
    """
    if choice == HERE:
        values = _here()
    elif choice.endswith((".yaml", ".yml")):
        load_section("cluster", choice)
        base = os.path.relpath(choice, folder)
        values = {"base": Said(base, "As given. What this file says takes precedence.")}
    elif choice in list_names("clusters"):
        values = {
            "base": Said(choice, f"As given: recipes/clusters/{choice}.yaml, with the source of each value.")
        }
    else:
        raise UserError(
            f"--cluster: there is no cluster `{choice}`; {nearest(choice, [HERE, *list_names('clusters')])} The path of a "
            "file ends in .yaml (`emma slurm site init` writes one)"
        )
    below = values.get("base")
    if below is not None and choice != HERE:
        cluster: Cluster = load_section("cluster", choice)
        if missing := [
            key
            for key in cluster.slurm.requires
            if getattr(cluster.slurm, key, None) is None and key not in slurm
        ]:
            raise UserError(
                f"--cluster: {choice} requires {', '.join(missing)}. Fix: add "
                + " ".join(f"--slurm {key}=…" for key in missing)
            )
    if slurm:
        values["slurm"] = Said(dict(slurm), "As given.")
    return values


def _here() -> dict[str, Any]:
    problems: list[str] = []
    gpus = find_gpus(problems)
    if problems:
        raise UserError(f"--cluster here: {problems[0]}")
    if not gpus:
        return {
            "base": Said(
                "local_cpu",
                "This machine has no GPU: one process, which uses all cores. For small models.",
            )
        }
    name = gpus[0].name.lower().replace(" ", "")
    known = [device for device in device_names() if device in name]
    if not known or len({gpu.name for gpu in gpus}) > 1:
        shown = ", ".join(sorted({gpu.name for gpu in gpus}))
        raise UserError(
            f"--cluster here: this machine has {len(gpus)} GPUs ({shown}), of no one kind in recipes/devices.yaml. Fix: write "
            "a cluster file (docs/clusters.md) and name it with --cluster"
        )
    return {
        "nodes": Said(1, "This machine."),
        "gpus_per_node": Said(len(gpus), f"nvidia-smi: {len(gpus)} × {gpus[0].name}."),
        "device": max(known, key=len),
        "memory_gib": Said(gpus[0].memory_gib, "nvidia-smi: memory.total."),
        "launcher": Said("torchrun", "One machine."),
    }
