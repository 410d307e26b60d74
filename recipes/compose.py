"""Reading YAML recipes and composing them: names become sections, overrides are applied, origins are remembered."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from recipes.errors import RecipeError, UserError

__all__ = ["FOLDERS", "Composed", "compose_file", "list_names", "nearest", "parse_override", "read_yaml"]

ROOT = Path(__file__).parent

# Sections that may be given by name, and the folder that holds their files.
FOLDERS = {"model": "models", "data": "data", "precision": "precision", "cluster": "clusters"}

Key = tuple[str, ...]


class Composed:
    """Plain values of a recipe and, for each dotted key, the `file:line` it came from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[Key, str] = {}

    def origin(self, key: Sequence[str | int]) -> str | None:
        """Origin of `key` or, where the key itself is absent, of the nearest key that contains it."""
        path = tuple(str(part) for part in key)
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[:-1]
        return self.origins.get(())

    def merge(self, other: Composed, at: Key = ()) -> None:
        """Lays `other` over the values at `at`: mappings merge key by key, anything else replaces."""
        target = self.values
        for part in at:
            target = target.setdefault(part, {})
        self._merge(target, other.values, other, at, ())

    def _merge(
        self, target: dict[str, Any], source: Mapping[str, Any], other: Composed, at: Key, path: Key
    ) -> None:
        for name, value in source.items():
            here = (*path, name)
            if isinstance(value, dict) and isinstance(target.get(name), dict):
                self._merge(target[name], value, other, at, here)
            else:
                target[name] = value
                depth = len(here)
                self.origins.update({(*at, *k): o for k, o in other.origins.items() if k[:depth] == here})
            if here in other.origins:
                self.origins[(*at, *here)] = other.origins[here]


def nearest(word: str, known: Sequence[str]) -> str:
    """`did you mean …?` with the closest known names, or the list of all where none is close."""
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"`{name}`" for name in close) + "?"
    return "known are " + ", ".join(f"`{name}`" for name in sorted(known))


def list_names(kind: str) -> list[str]:
    """Names of the shipped recipe files of a folder (`runs`, `models`, ...), sorted."""
    return sorted(path.stem for path in (ROOT / kind).glob("*.yaml"))


def read_yaml(path: Path) -> Composed:
    """Reads one YAML 1.2 file.

    Raises:
        UserError: the file is missing, no UTF-8, no YAML, has a key twice, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        loaded = YAML(typ="rt").load(StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = str(error.problem or error.context).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if loaded is None:
        loaded = CommentedMap()
    if not isinstance(loaded, CommentedMap):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, this is a {type(loaded).__name__}")
    composed = Composed()
    composed.origins[()] = str(path)
    composed.values = _plain(loaded, path, (), composed.origins)
    return composed


def _plain(node: Any, path: Path, key: Key, origins: dict[Key, str]) -> Any:
    if isinstance(node, CommentedMap):
        result = {}
        for name, value in node.items():
            here = (*key, str(name))
            origins[here] = f"{path}:{node.lc.key(name)[0] + 1}"
            result[str(name)] = _plain(value, path, here, origins)
        return result
    if isinstance(node, CommentedSeq):
        result_list = []
        for index, value in enumerate(node):
            here = (*key, str(index))
            origins[here] = f"{path}:{node.lc.item(index)[0] + 1}"
            result_list.append(_plain(value, path, here, origins))
        return result_list
    # ruamel's round-trip scalars are subclasses that remember their spelling; recipes want the plain types.
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def section_file(section: str, name: str, beside: Path) -> Path:
    """File of a section given by name or by a path that ends in `.yaml` (relative to the file that refers to it)."""
    if name.endswith((".yaml", ".yml")):
        return beside / name
    path = ROOT / FOLDERS[section] / f"{name}.yaml"
    if not path.is_file():
        raise RecipeError(
            section,
            f"there is no recipe `{name}` in recipes/{FOLDERS[section]}",
            nearest(name, list_names(FOLDERS[section])) + " A path of a file ends in .yaml",
        )
    return path


def _load_section(section: str, value: Any, beside: Path, origin: str | None) -> Composed:
    """A named section as values; a mapping may start from a `base`."""
    if isinstance(value, str):
        try:
            path = section_file(section, value, beside)
        except RecipeError as error:
            raise RecipeError(error.key, error.problem, error.fix, origin) from None
        composed = read_yaml(path)
        base = composed.values.pop("base", None)
        if base is not None:
            below = _load_section(section, base, path.parent, composed.origins.get(("base",)))
            below.merge(composed)
            composed = below
        composed.values["name"] = path.stem
        composed.origins.setdefault(("name",), str(path))
        return composed
    raise RecipeError(
        section,
        f"expected a name or a mapping, got {value!r}",
        f"name a file of recipes/{FOLDERS[section]}",
        origin,
    )


def resolve_sections(run: Composed, beside: Path) -> Composed:
    """Replaces section names by the values of their files; keys given inline win over the file's."""
    resolved = Composed()
    resolved.origins[()] = run.origins[()]
    for section in FOLDERS:
        value = run.values.get(section)
        if isinstance(value, dict) and "base" in value:
            base = _load_section(section, value["base"], beside, run.origin((section, "base")))
        elif value is not None and not isinstance(value, dict):
            base = _load_section(section, value, beside, run.origin((section,)))
        else:
            continue
        resolved.values[section] = {}
        resolved.merge(base, (section,))
        resolved.origins[(section,)] = run.origin((section,)) or base.origins[()]
    rest = Composed()
    rest.values = {
        name: {k: v for k, v in value.items() if k != "base"}
        if name in FOLDERS and isinstance(value, dict)
        else value
        for name, value in run.values.items()
        if not (name in FOLDERS and not isinstance(value, dict))
    }
    rest.origins = run.origins
    resolved.merge(rest)
    return resolved


def parse_override(text: str) -> tuple[Key, Any]:
    """`section.key=value` → key path and value; the value is read as YAML (`true`, `3`, `1e-5`, `[a, b]`, `null`).

    Raises:
        UserError: no `=`, an empty key, or a value that is no YAML.
    """
    name, separator, value = text.partition("=")
    key = tuple(name.strip().split("."))
    if not separator or not all(key):
        raise UserError(f"override `{text}`: expected section.key=value, e.g. schedule.learning_rate=1e-5")
    try:
        parsed = YAML(typ="safe").load(value) if value.strip() else None
    except YAMLError as error:
        raise UserError(
            f"override `{text}`: the value is not valid YAML: {str(error).splitlines()[0]}"
        ) from None
    return key, parsed


def compose_file(path: Path, overrides: Sequence[str] = ()) -> Composed:
    """Reads a run file, follows `extends`, applies `section.key=value` overrides, resolves section names.

    An override of a whole section (`data=mala_monolingual`) names another file; one of a key inside
    (`model.rope_theta=1e6`) wins over the file's value.
    """
    run = _extended(path, ())
    for text in overrides:
        key, value = parse_override(text)
        _apply_override(run, key, value, path.parent)
    return resolve_sections(run, path.parent)


def _extended(path: Path, seen: tuple[Path, ...]) -> Composed:
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself: " + " → ".join(str(p) for p in (*seen, path)))
    run = read_yaml(path)
    run.values.setdefault("name", path.stem)
    parent = run.values.pop("extends", None)
    if parent is None:
        return run
    name = str(parent)
    if name.endswith((".yaml", ".yml")):
        parent_path = path.parent / name
    else:
        parent_path = ROOT / "runs" / f"{name}.yaml"
        if not parent_path.is_file():
            raise RecipeError(
                "extends",
                f"there is no run `{name}`",
                nearest(name, list_names("runs")),
                run.origins[("extends",)],
            )
    below = _extended(parent_path, (*seen, path.resolve()))
    for section in FOLDERS:
        value, inherited = run.values.get(section), below.values.get(section)
        if isinstance(value, dict) and isinstance(inherited, str):
            # A child that changes single keys of a section that its parent only named.
            run.values[section] = {"base": inherited, **value}
        if isinstance(value, str):
            below.values.pop(section, None)
    below.merge(run)
    below.origins[()] = str(path)
    return below


def _apply_override(run: Composed, key: Key, value: Any, beside: Path) -> None:
    section = key[0]
    if section in FOLDERS and len(key) > 1:
        current = run.values.get(section)
        if isinstance(current, str):
            run.values[section] = {"base": current}
    target = run.values
    for depth, part in enumerate(key[:-1], start=1):
        inner = target.get(part)
        if inner is None:
            inner = target[part] = {}
        if not isinstance(inner, dict):
            raise RecipeError(
                ".".join(key),
                f"`{'.'.join(key[:depth])}` is {inner!r}, which has no keys",
                "override the whole value",
                "command line",
            )
        target = inner
    target[key[-1]] = value
    run.origins = {k: o for k, o in run.origins.items() if k[: len(key)] != key}
    run.origins[key] = "command line"
