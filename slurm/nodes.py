"""Nodes that failed a preflight, remembered beside the runs of a cluster: `<paths.runs>/.bad_nodes.jsonl`.

Whoever submits next asks for other nodes, until the note is a week old or `emma slurm site forgive` has removed it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson

from emma.base.files import append_line
from emma.base.manifest import now
from emma.tools.runs.metrics import read_lines

__all__ = ["DAYS", "bad_nodes", "forgive", "remember"]

DAYS = 7
"""Days after which a node is tried again: by then it was drained or mended, and the preflight will say so if not."""

_FILE = ".bad_nodes.jsonl"


def remember(runs: Path, faults: Mapping[str, Sequence[str]], run: str) -> None:
    """Notes faulty nodes.

    Args:
        runs: folder of the runs.
        faults: each node's faults, in words.
        run: name of the run whose preflight found them.
    """
    for node, found in sorted(faults.items()):
        event = {"event": "failed", "node": node, "faults": list(found), "run": run, "time": now()}
        append_line(runs / _FILE, orjson.dumps({**event, "cluster": os.environ.get("SLURM_CLUSTER_NAME")}))


def forgive(runs: Path, nodes: Iterable[str]) -> None:
    """Notes that nodes are to be tried again."""
    for node in nodes:
        append_line(runs / _FILE, orjson.dumps({"event": "forgiven", "node": node, "time": now()}))


def bad_nodes(runs: Path, cluster: str | None) -> dict[str, str]:
    """Nodes to leave out, each with why.

    Args:
        runs: folder of the runs.
        cluster: Slurm's name of the cluster; notes of others don't count.
    """
    since = datetime.now(UTC) - timedelta(days=DAYS)
    found: dict[str, str] = {}
    for event in read_lines(runs / _FILE):
        node = event["node"]
        if event["event"] == "forgiven":
            found.pop(node, None)
        elif datetime.fromisoformat(event["time"]) >= since and event["cluster"] in (None, cluster):
            found[node] = f"{'; '.join(event['faults'])} ({event['run']}, {event['time'][:10]})"
    return found
