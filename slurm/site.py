"""A cluster file for the cluster that this machine belongs to, from what Slurm and the machine say."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from emma.base.errors import UserError
from emma.base.files import write_text
from emma.recipes.compose import nearest
from emma.recipes.devices import device_names
from emma.recipes.load import load_section
from emma.slurm import query

__all__ = ["Machine", "Site", "describe", "look_around", "read_site", "write_site"]

_DAY = 86400
# Parts of the names that sites give to GPUs in `Gres`, the first that fits wins.
_NAMES = ("gh200", "b200", "h200", "h100", "a100", "mi300a", "mi300x", "mi250x", "mi250")


@dataclass(frozen=True)
class Machine:
    """What the machine that `emma` runs on has, usually a login node.

    Attributes:
        interfaces: network interfaces that are up.
        fabrics: devices of /sys/class/infiniband.
        containers: programs that start containers.
        pyxis: whether `srun` has Pyxis' options.
    """

    interfaces: list[str] = field(default_factory=list)
    fabrics: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    pyxis: bool = False


@dataclass(frozen=True)
class Site:
    """What Slurm says of a partition and of this user.

    Attributes:
        nodes: the partition's nodes.
        gpus, cores, memory_mib: of most of its nodes.
        gpu: name of the GPUs in `Gres`, empty without one.
        settings: `scontrol show config`.
    """

    cluster: str
    partition: query.Partition
    nodes: int
    gpus: int
    gpu: str
    cores: int
    memory_mib: int
    settings: dict[str, str]
    accounts: list[str]
    qos: list[str]


def look_around(system: Path = Path("/sys")) -> Machine:
    """What this machine has."""
    interfaces = []
    for path in sorted((system / "class/net").glob("*")):
        state = path / "operstate"
        if path.name != "lo" and state.is_file() and state.read_text().strip() in ("up", "unknown"):
            interfaces.append(path.name)
    fabrics = sorted(path.name for path in (system / "class/infiniband").glob("*"))
    containers = [name for name in ("apptainer", "singularity") if shutil.which(name)]
    try:
        pyxis = "--container-image" in query.run_slurm(["srun", "--help"])
    except query.SlurmError:
        pyxis = False
    return Machine(interfaces, fabrics, containers, pyxis)


def read_site(partition: str | None = None) -> Site:
    """Asks Slurm.

    Args:
        partition: which one; by default the one with the most GPUs, else the default one.

    Raises:
        UserError: Slurm does not answer, or has no such partition.
    """
    known, settings = query.partitions(), query.configuration()
    nodes = query.nodes()
    if partition is not None and partition not in known:
        raise UserError(
            f"--partition: there is no partition `{partition}`. Fix: {nearest(partition, list(known))}"
        )

    def rank(name: str) -> tuple[int, bool, int]:
        own = [node for node in nodes if name in node.partitions]
        return sum(node.gpus for node in own), known[name].default, len(own)

    chosen = partition or max((name for name in known if known[name].up), key=rank, default="")
    if not chosen:
        raise UserError("sinfo: no partition is up. Fix: ask the cluster's administrators")
    own = [node for node in nodes if chosen in node.partitions]
    if not own:
        raise UserError(
            f"--partition: `{chosen}` has no nodes. Fix: choose another of {', '.join(sorted(known))}"
        )
    # Partitions may mix kinds of nodes: the most common one counts.
    kind = Counter((node.gpu, node.gpus, node.cores, node.memory_mib) for node in own).most_common(1)[0][0]
    needs = query.needs_account()
    try:
        accounts, qos = query.accounts(), query.user_qos()
    except query.SlurmError:
        accounts, qos = [], []
    return Site(
        cluster=settings.get("ClusterName", "cluster"),
        partition=known[chosen],
        nodes=len(own),
        gpu=kind[0],
        gpus=kind[1],
        cores=kind[2],
        memory_mib=kind[3],
        settings=settings,
        accounts=accounts if needs else [],
        qos=qos,
    )


def _device(site: Site, given: str | None) -> str:
    if given is not None:
        if given not in device_names():
            raise UserError(f"--device: `{given}` is not known. Fix: {nearest(given, device_names())}")
        return given
    if not site.gpus:
        return "cpu"
    name = next((part for part in _NAMES if part in site.gpu.lower().replace("-", "")), None)
    if name is None:
        raise UserError(
            f"Slurm calls the GPUs of partition `{site.partition.name}` {site.gpu or 'gpu'!r}, which tells no kind. "
            f"Fix: pass --device, one of {', '.join(device_names())}"
        )
    return "mi250x" if name == "mi250" else name


def _network(machine: Machine) -> tuple[str | None, str]:
    if any(name.startswith("hsn") for name in machine.interfaces):
        return "slingshot", "interfaces named hsn"
    if any(name.startswith(("efa", "rdmap")) for name in machine.fabrics):
        return "efa", f"EFA devices {', '.join(machine.fabrics)}"
    if any(name.startswith("mlx") for name in machine.fabrics):
        return "infiniband", f"InfiniBand devices {', '.join(machine.fabrics)}"
    return None, "no InfiniBand, Slingshot or EFA"


def describe(site: Site, machine: Machine, device: str | None = None) -> str:
    """The text of the cluster file.

    Args:
        site: what Slurm says.
        machine: what this machine has.
        device: kind of device, where Slurm's name for it tells none.

    Raises:
        UserError: the kind of device cannot be told, or is not known.
    """
    kind, settings, partition = _device(site, device), site.settings, site.partition
    ranks = site.gpus or 1
    longest = partition.max_seconds
    limit = min(longest, _DAY) if longest is not None else _DAY
    hours = f"{limit // 3600:02}:{limit % 3600 // 60:02}:{limit % 60:02}"
    signal = 600 if limit > 1200 else max(30, limit // 4)
    network, seen = _network(machine)
    interface = next((name for name in machine.interfaces if re.match(r"hsn|ib", name)), None)
    lines = [
        f"# {site.cluster}, partition {partition.name}: written by `emma slurm site init` from what Slurm and this machine say.",
        "# Look it over: what only the site's documentation knows (QOS, modules, image) is left to you.",
        "",
        f"# Of {site.nodes} in the partition.",
        "nodes: 1",
        f"# Slurm: {site.gpus} GPUs a node." if site.gpus else "# No GPUs: processes.",
        f"gpus_per_node: {ranks}",
        f"# Slurm's name: {site.gpu}." if site.gpu else "# As told." if device else "# No GPUs.",
        f"device: {kind}",
        "# Slurm: RealMemory of a node.",
        f"host_memory_gib: {max(1, site.memory_mib // 1024)}",
        "launcher: srun",
        f"# This machine has {seen}.",
        f"network: {network}" if network else "# network: infiniband",
        "slurm:",
        f"  # {site.nodes} nodes, {'no limit of time' if longest is None else f'at most {longest / 3600:g} h'}.",
        f"  partition: {partition.name}",
    ]
    if site.accounts:
        lines += [
            f"  # Yours: {', '.join(site.accounts)}.",
            f"  account: {site.accounts[0]}",
            "  requires: [account]",
        ]
    if site.qos:
        lines += [f"  # Yours: {', '.join(site.qos)}.", "  # qos: " + site.qos[0]]
    lines += [
        "  # Of one training job; the chain continues after it.",
        f'  time_limit: "{hours}"',
        "  # SIGTERM this long before the end: a step and a save must fit.",
        f"  signal_seconds: {signal}",
    ]
    if site.gpus:
        counted = settings.get("SelectType") == "select/cons_tres"
        value = "--gpus-per-node={gpus}" if counted else "--gres=gpu:{gpus}"
        lines += [f"  # SelectType: {settings.get('SelectType', 'unknown')}.", f'  gpu_option: "{value}"']
    lines += [
        f"  # {site.cores} cores a node.",
        f"  cpus_per_rank: {max(1, site.cores // ranks)}",
        "  # Control traffic; an interface of this machine, which compute nodes need not have.",
        f"  network_interface: {interface}" if interface else "  # network_interface: ib0",
        "  # The environment that emma runs in now; every node must see it.",
        f"  venv: {_quoted(sys.prefix)}",
    ]
    programs = [*machine.containers, *(["pyxis"] if machine.pyxis else [])]
    found = f"found: {', '.join(programs)}" if programs else "none found on this machine"
    lines += [
        f"  # Or a container ({found}):",
        f"  # template: {programs[0] if programs else 'apptainer'}",
        "  # container: /path/to/image.sif",
        "  # mounts: [/folder/of/the/runs]",
        f"  # KillWait {settings.get('KillWait', 'unknown')}: what `scancel` leaves for a save; `emma slurm submit` says whether it",
        "  # is enough.",
        f"  # PreemptMode {partition.preempt_mode}, GraceTime {partition.grace_seconds} s.",
        f"  # PrivateData {settings.get('PrivateData', 'none')}: what of other users' jobs you cannot see.",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./-]+", text) else "'" + text.replace("'", "''") + "'"


def write_site(text: str, path: Path, *, overwrite: bool = False) -> None:
    """Writes a cluster file, once its recipe section is known to be valid.

    Raises:
        UserError: it exists, its name does not end in .yaml, or what Slurm said makes no valid section.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: a cluster file ends in .yaml. Fix: name it so")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists. Fix: name another file, or pass --overwrite")
    trial = path.with_name(f".{path.stem}.trial.yaml")
    try:
        write_text(trial, text)
        load_section("cluster", str(trial))
    finally:
        trial.unlink(missing_ok=True)
    write_text(path, text)
