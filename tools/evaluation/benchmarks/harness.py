"""lm-eval's own tasks, with this project's models, resume, shards, statistics and pages.

Prompts, examples, filters and metrics are lm-eval's. A unit is a benchmark in a language: all tasks of that family and
language (Global-MMLU has 57 subjects), whose items are scored together. The data comes from the mirror, laid out as on the
hub, or from the hub through `datasets`.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from emma.base.errors import UserError
from emma.recipes.compose import ROOT, nearest
from emma.recipes.reading import read_yaml
from emma.tools.evaluation.benchmarks.definitions import variants
from emma.tools.evaluation.benchmarks.harness_data import mirrored
from emma.tools.evaluation.benchmarks.scores import Score, mean_score
from emma.tools.evaluation.benchmarks.stores import Store

__all__ = [
    "PREFIX",
    "HarnessUnit",
    "build_tasks",
    "evaluate_tasks",
    "expand",
    "groups",
    "harness_units",
    "request_sha256",
]

PREFIX = "lm_eval:"
_FILE = ROOT / "evaluation" / "harness.yaml"
_SEED = 1234
"""lm-eval's default seed of worked examples."""


@dataclass(frozen=True)
class HarnessUnit:
    """lm-eval's tasks of one benchmark in one language."""

    family: str
    language: str
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        """`lm_eval.<family>/<language>`."""
        return f"{self.benchmark_name}/{self.language}"

    @property
    def benchmark_name(self) -> str:
        """Its name in results."""
        return f"lm_eval.{self.family}"


def groups() -> Mapping[str, Sequence[str]]:
    """Shipped lists of benchmarks by name, those of variants included."""
    return {**read_yaml(_FILE).values["groups"], **variants()}


def expand(names: Sequence[str]) -> list[str]:
    """The user's benchmarks, with shipped lists in place of their names."""
    known = groups()
    return list(dict.fromkeys(part for name in names for part in known.get(name, (name,))))


def harness_units(names: Sequence[str]) -> list[HarnessUnit]:
    """Units of lm-eval's tasks, groups or tags.

    Args:
        names: with or without the prefix `lm_eval:`; `*` and `?` stand for any text and any character.

    Raises:
        UserError: lm-eval has no task of a name.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for label in _matching(name.removeprefix(PREFIX)):
            for task in _leaves(label):
                found.setdefault(_place(task), []).append(task)
    return [
        HarnessUnit(family, language, tuple(dict.fromkeys(tasks)))
        for (family, language), tasks in found.items()
    ]


def _matching(name: str) -> list[str]:
    """What lm-eval declares under a name: itself, what a pattern matches, or the tasks of a family."""
    declared = _declared()
    if set(name) & set("*?"):
        found = fnmatch.filter(declared, name)
    elif name in declared or name not in _families():
        return [name]
    else:
        pattern = _families()[name]
        found = [task for task, (_, leaf) in declared.items() if leaf and pattern.fullmatch(task)]
        found = [task for task in found if _place(task)[0] == name]
    if not found:
        raise UserError(f"{PREFIX}{name}: lm-eval has no task or group of such a name")
    return sorted(found)


@functools.cache
def _families() -> dict[str, re.Pattern[str]]:
    patterns = read_yaml(_FILE).values["families"]
    return {family: re.compile(pattern) for family, pattern in patterns.items()}


def _place(task: str) -> tuple[str, str]:
    """Family and language of a task, by the patterns of harness.yaml."""
    for family, pattern in _families().items():
        if match := pattern.fullmatch(task):
            return family, match.groupdict().get("language") or "eng_Latn"
    return task, "eng_Latn"


@functools.cache
def _declared() -> dict[str, tuple[set[str], bool]]:
    """Every name of a task, group or tag in lm-eval's YAML files → the top folders that declare it, and whether it is a
    task. A tag can have tasks in several folders.

    lm-eval's own index resolves 14,000 files, which takes a minute; only the folders that are needed are given to it.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    pattern = re.compile(rb"^[\"']?(task|group|tag)[\"']?:[ \t]*([^\n#\[]+)", re.MULTILINE)
    listed = re.compile(rb"^[\"']?tag[\"']?:\s*\n((?:[ \t]*-[ \t]*\S+\s*\n)+)", re.MULTILINE)
    found: dict[str, tuple[set[str], bool]] = {}
    for path in root.rglob("*"):
        # Templates that others include declare tags, too, and often have no extension.
        if not path.is_file() or not (path.suffix in ("", ".yaml", ".yml") or "yaml" in path.name):
            continue
        content = path.read_bytes()
        names = pattern.findall(content)
        names += [
            (b"tag", name) for part in listed.findall(content) for name in re.findall(rb"-[ \t]*(\S+)", part)
        ]
        for kind, name in names:
            text = name.decode().strip().strip("'\"")
            folders, _ = found.setdefault(text, (set(), kind == b"task"))
            folders.add(path.relative_to(root).parts[0])
    return found


@functools.cache
def _manager(folders: frozenset[str]) -> Any:
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_path=[str(root / name) for name in sorted(folders)], include_defaults=False)


@functools.cache
def _managed(name: str) -> Any:
    """A task manager that knows a name and, for a group, all its members."""
    declared = _declared()
    if name not in declared:
        raise UserError(f"{PREFIX}{name}: lm-eval has no such task or group; {nearest(name, list(declared))}")
    folders = set(declared[name][0])
    while True:
        manager = _manager(frozenset(folders))
        if name not in manager.task_index:
            raise UserError(
                f"{PREFIX}{name}: lm-eval declares it but cannot index it; choose one of its tasks"
            )
        missing = {
            child for child in _children(manager, name, deep=True) if child not in manager.task_index
        } & declared.keys()
        more = {folder for child in missing for folder in declared[child][0]} - folders
        if not more:
            return manager
        folders |= more


def _children(manager: Any, name: str, *, deep: bool = False) -> list[str]:
    entry = manager.task_index.get(name)
    kind = entry.kind.name if entry is not None else ""
    found: list[str] = []
    if kind == "TAG":
        found = sorted(key for key, other in manager.task_index.items() if name in other.tags)
    elif kind == "GROUP":
        for child in (entry.cfg or {}).get("task") or []:
            label = child if isinstance(child, str) else str(child.get("task") or child.get("group") or "")
            found.append(label)
    if not deep:
        return found
    return [part for child in found for part in (child, *_children(manager, child, deep=True))]


def _leaves(name: str) -> list[str]:
    manager = _managed(name)
    children = _children(manager, name)
    if not children:
        return [name]
    below = [part for child in children for part in _leaves_in(manager, child)]
    return list(dict.fromkeys(below))


def _leaves_in(manager: Any, name: str) -> list[str]:
    children = _children(manager, name)
    return [part for child in children for part in _leaves_in(manager, child)] if children else [name]


def build_tasks(unit: HarnessUnit, store: Store, shots: int | None = None) -> dict[str, Any]:
    """lm-eval's tasks of a unit, with their data.

    Raises:
        UserError: the mirror lacks the data, or a task would execute code that the model writes.
    """
    with mirrored(store):
        tasks: dict[str, Any] = {}
        # Some tasks shuffle choices with the global generators, which lm-eval's command seeds like this.
        random.seed(0)
        np.random.seed(_SEED)
        for name in unit.tasks:
            loaded = _managed(name).load([name])["tasks"]
            for task in loaded.values():
                if getattr(task, "UNSAFE_CODE", False) or getattr(task.config, "unsafe_code", False):
                    raise UserError(
                        f"{PREFIX}{name}: lm-eval would run what the model writes without a sandbox; leave it out "
                        "(humaneval and multipl_e are run here in one)"
                    )
                fixed = task.get_config("num_fewshot")
                if shots and fixed == 0:
                    raise UserError(
                        f"{PREFIX}{name}: lm-eval fixes it at 0 examples, so it cannot have {shots}"
                    )
                task.set_config("num_fewshot", (fixed or 0) if shots is None else shots)
                task.set_fewshot_seed(seed=_SEED)
            tasks |= loaded
    return tasks


def request_sha256(tasks: Mapping[str, Any], limit: int | None) -> tuple[str, int]:
    """SHA-256 over all requests of tasks, and the number of items."""
    digest, items = hashlib.sha256(), 0
    for name, task in tasks.items():
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        digest.update(name.encode())
        for request in task.instances:
            digest.update(orjson.dumps([str(part) for part in request.args]))
        items += len({request.doc_id for request in task.instances})
        # Building drew the worked examples; the evaluation, which builds again, must draw the same.
        task.set_fewshot_seed(seed=_SEED)
    return digest.hexdigest(), items


def evaluate_tasks(
    model: Any, tasks: Mapping[str, Any], limit: int | None
) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """Scores of a unit and its samples, by lm-eval.

    A metric that is a mean over items has an item's value in each sample; of others lm-eval's value stands, averaged over
    the tasks by their items. A second filter of a metric gets its name (`exact_match:flexible-extract`).
    """
    from lm_eval.evaluator import evaluate

    task_dict = {"tasks": dict(tasks), "groups": {}, "group_map": {}}
    found = evaluate(lm=model, task_dict=task_dict, limit=limit, log_samples=True, bootstrap_iters=0)
    samples: list[dict[str, Any]] = []
    values: dict[str, list[tuple[int, float]]] = {}
    for name in tasks:
        rows: dict[int, dict[str, Any]] = {}
        filters = [part.name for part in tasks[name]._filters]
        for sample in found["samples"][name]:
            row = rows.setdefault(
                sample["doc_id"],
                _sample(sample, f"{name}/{sample['doc_id']}" if len(tasks) > 1 else str(sample["doc_id"])),
            )
            for metric in sample["metrics"]:
                value = sample[metric]
                if isinstance(value, bool | int | float):
                    row["scores"][_key(metric, sample["filter"], filters)] = float(value)
            row["filtered"][sample["filter"]] = _plain(sample["filtered_resps"])
        samples += rows.values()
        for label, value in found["results"][name].items():
            metric, _, place = label.partition(",")
            if place and not metric.endswith("_stderr") and isinstance(value, int | float):
                values.setdefault(_key(metric, place, filters), []).append((len(rows), float(value)))
    scores = {}
    for key, parts in values.items():
        items = [sample["scores"].get(key) for sample in samples]
        count = sum(number for number, _ in parts)
        value = sum(number * part for number, part in parts) / max(1, count)
        mean = mean_score(items)
        if mean.n == len(samples) and abs(mean.value - value) < 1e-6:
            scores[key] = mean
        else:
            scores[key] = Score(value, None, count)
    return scores, samples


def _key(metric: str, place: str, filters: Sequence[str]) -> str:
    return metric if place in ("none", filters[0]) else f"{metric}:{place}"


def _sample(sample: Mapping[str, Any], index: str) -> dict[str, Any]:
    """An item as it is kept: its requests' prompts (one, if all have the same), what each continues with, what the model
    returned, what filters made of it, and scores."""
    arguments = sample["arguments"]
    prompts = [str(part[0]) for part in arguments]
    given: dict[str, Any] = {"prompts": prompts} if len(set(prompts)) > 1 else {}
    if all(len(part) > 1 and isinstance(part[1], str) for part in arguments):
        given["continuations"] = [part[1] for part in arguments]
    return {
        "index": index,
        "prompt": prompts[0],
        "prompt_sha256": sample["prompt_hash"],
        **given,
        "filtered": {},
        "target": str(sample["target"]),
        "responses": _plain(sample["resps"]),
        "scores": {},
    }


def _plain(values: Any) -> Any:
    return orjson.loads(orjson.dumps(values, default=str))
