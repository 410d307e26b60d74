"""Read YAML recipes and compose them: names become sections, overrides are applied, origins are recorded."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from emma.base.errors import RecipeError, UserError
from emma.recipes.reading import DEEPEST, Composed, Key, read_value, read_yaml

__all__ = [
    "FOLDERS",
    "LAYOUTS",
    "compose_file",
    "compose_section",
    "list_names",
    "nearest",
    "parse_override",
]

ROOT = Path(__file__).parent

# Sections that may be given by name, and the folders of their files.
FOLDERS = {"model": "models", "data": "data", "precision": "precision", "cluster": "clusters"}

# Folder of layouts: partial recipes (cluster, precision, parallelism, ...) that a run names as its `layout`.
LAYOUTS = "layouts"

# Origin of overrides.
COMMAND_LINE = "command line"


def nearest(word: str, known: Sequence[str]) -> str:
    """`did you mean …?` with the closest known names, or all names if none is close."""
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    first, second = (difflib.SequenceMatcher(None, word, name).ratio() for name in [*close, "", ""][:2])
    if close:
        close = close[:1] if first - second > 0.1 else close
        return "did you mean " + " or ".join(f"`{name}`" for name in close) + "?"
    return "choose one of " + ", ".join(f"`{name}`" for name in sorted(known))


def list_names(kind: str) -> list[str]:
    """Names of the shipped recipe files in a folder (`runs`, `models`, ...), sorted."""
    return sorted(path.stem for path in (ROOT / kind).glob("*.yaml"))


def _is_path(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value.endswith((".yaml", ".yml"))


def _named_file(key: str, folder: str, name: str, origin: str | None) -> Path:
    """The file that is meant by a name in a folder of recipes or by a path ending in `.yaml`."""
    if _is_path(name):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(key, f"{path}: no such recipe file", "correct the path", origin)
        return path
    path = ROOT / folder / f"{name}.yaml"
    if not path.is_file():
        hint = nearest(name, list_names(folder))
        raise RecipeError(
            key,
            f"there is no recipe `{name}` in recipes/{folder}",
            f"{hint} A path of a file ends in .yaml",
            origin,
        )
    return path


def compose_section(section: str, value: Any, origin: str | None, seen: tuple[Path, ...] = ()) -> Composed:
    """A section given by name or path, laid over its `base`; its `name` is the file's, unless the file says one.

    Raises:
        RecipeError: `value` is not a name, there is no such file, or files are each other's base.
    """
    if not isinstance(value, str):
        fix = f"name a file of recipes/{FOLDERS[section]}"
        raise RecipeError(section, f"expected a name or a mapping, got {value!r}", fix, origin)
    path = _named_file(section, FOLDERS[section], value, origin)
    if path.resolve() in seen:
        raise _loop("base", (*seen, path.resolve()), origin)
    composed = read_yaml(path)
    named = composed.values.get("name")
    base = composed.values.pop("base", None)
    if base is not None:
        base = str(path.parent / base) if _is_path(base) else base
        below = compose_section(section, base, composed.origin(("base",)), (*seen, path.resolve()))
        below.merge(composed)
        composed = below
    if named is None:
        composed.values["name"] = path.stem
        composed.origins[("name",)] = str(path)
    return composed


def _loop(key: str, files: tuple[Path, ...], origin: str | None) -> RecipeError:
    chain = " → ".join(path.name for path in files)
    return RecipeError(key, f"these files refer to each other in a loop: {chain}", "break the loop", origin)


def _resolve_sections(run: Composed) -> Composed:
    """Replaces section names with the contents of their files; keys given inline take precedence."""
    resolved, rest = Composed(), Composed()
    resolved.origins[()] = run.origins[()]
    rest.values, rest.origins = dict(run.values), run.origins
    for section in FOLDERS:
        value = run.values.get(section)
        if value is None:
            continue
        if isinstance(value, dict):
            inline = {key: inner for key, inner in value.items() if key != "base"}
            rest.values[section] = inline
            if "base" not in value:
                inline.setdefault("name", run.values.get("name", "inline"))
                continue
            value, origin = value["base"], run.origin((section, "base"))
        else:
            del rest.values[section]
            origin = run.origin((section,))
        base = compose_section(section, value, origin)
        resolved.values[section] = {}
        resolved.merge(base, (section,))
        resolved.origins[(section,)] = origin or base.origins[()]
    resolved.merge(rest)
    return resolved


def parse_override(text: str) -> tuple[Key, Any]:
    """`section.key=value` → path of the key, and value, read as YAML (`true`, `3`, `1e-5`, `[a, b]`, `null`).

    Raises:
        UserError: no `=`, an empty key, or a value that is not YAML.
    """
    name, separator, value = text.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not separator or not all(key):
        raise UserError(
            f"override `{text}`: expected section.key=value without spaces, e.g. schedule.learning_rate=1e-5"
        )
    if len(key) > DEEPEST:
        raise UserError(f"override `{text[:60]}…`: no key of a recipe has more than {DEEPEST} parts")
    return key, read_value(value, f"override `{text if len(text) < 100 else text[:100] + '…'}`")


def compose_file(path: Path, overrides: Sequence[str] = ()) -> Composed:
    """Reads a run file, follows `extends`, lays it over its `layout`, applies overrides, resolves section names.

    Overriding a whole section (`data=mala_monolingual`) names another file; overriding a key (`model.rope_theta=1e6`)
    takes precedence over the file's value. `layout=NAME` replaces the file's layout and, unlike a layout named in the
    file, takes precedence over the file's own keys; it is applied before all other overrides.

    Raises:
        UserError: the files or overrides cannot be composed; with file and line.
    """
    run = _extended(path, "runs")
    parsed = [parse_override(text) for text in overrides]
    chosen = [value for key, value in parsed if key == ("layout",)]
    named, origin = run.values.pop("layout", None), run.origin(("layout",))
    if chosen:
        named, origin = chosen[-1], COMMAND_LINE
    if named is not None:
        if not isinstance(named, str):
            fix = f"name a file of recipes/{LAYOUTS}"
            raise RecipeError("layout", f"expected a name, got {named!r}", fix, origin)
        layout = _extended(_named_file("layout", LAYOUTS, named, origin), LAYOUTS)
        run = _laid_over(copy.deepcopy(layout), run)
        if chosen:
            for section in (*FOLDERS, "parallelism"):
                if section in layout.values:
                    run.drop(section)
            run = _laid_over(run, layout)
    for key, value in parsed:
        if key != ("layout",):
            _apply_override(run, key, value)
    run.values.setdefault("name", path.stem)
    run.origins[()] = str(path)
    return _resolve_sections(run)


def _extended(path: Path, folder: str, seen: tuple[Path, ...] = ()) -> Composed:
    """A file laid over those it `extends` (names in the same folder, or paths); of several, later ones take precedence."""
    run = read_yaml(path)
    for section in FOLDERS:
        # From here on, paths do not depend on the file they were written in.
        value = run.values.get(section)
        if _is_path(value):
            run.values[section] = str(path.parent / value)
        elif isinstance(value, dict) and _is_path(value.get("base")):
            value["base"] = str(path.parent / value["base"])
    named = run.values.pop("extends", None)
    if named is None:
        return run
    names = named if isinstance(named, list) else [named]
    if not names or not all(isinstance(name, str) for name in names):
        fix = f"name one or several files of recipes/{folder}"
        raise RecipeError(
            "extends", f"expected a name or a list of names, got {named!r}", fix, run.origin(("extends",))
        )
    seen = (*seen, path.resolve())
    below = []
    for place, name in enumerate(names):
        origin = run.origin(("extends", place))
        parent = _named_file("extends", folder, str(path.parent / name) if _is_path(name) else name, origin)
        if parent.resolve() in seen:
            raise _loop("extends", (*seen, parent.resolve()), origin)
        below.append(_extended(parent, folder, seen))
        below[-1].drop("name")  # a run is named by itself or by its file, never by a parent
    return functools.reduce(_laid_over, [*below, run])


def _laid_over(below: Composed, above: Composed) -> Composed:
    """`above` over `below`. A section that `above` names replaces the one below; if `above` changes single keys of a
    section that `below` gives by name, that name becomes the base."""
    for section in FOLDERS:
        value, inherited = above.values.get(section), below.values.get(section)
        if isinstance(value, str) or (isinstance(value, dict) and "base" in value):
            below.drop(section)
        elif isinstance(value, dict) and isinstance(inherited, str):
            below.values[section] = {"base": inherited}
            below.origins[(section, "base")] = below.origins.get((section,), "")
    below.merge(above)
    return below


def _apply_override(run: Composed, key: Key, value: Any) -> None:
    section = key[0]
    if section in FOLDERS and len(key) > 1 and isinstance(run.values.get(section), str):
        run.values[section] = {"base": run.values[section]}
        run.origins[(section, "base")] = run.origins.get((section,), "")
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
                COMMAND_LINE,
            )
        target = inner
    target[key[-1]] = value
    run.origins = {k: o for k, o in run.origins.items() if k[: len(key)] != key}
    run.origins[key] = COMMAND_LINE
