"""From a run's name to a checked `Recipe`."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from emma.base.errors import RecipeError, UserError
from emma.base.files import write_text
from emma.base.sharing import set_umask
from emma.recipes.checks import check_combination
from emma.recipes.compose import ROOT, compose_file, compose_section, list_names, nearest
from emma.recipes.limits import check_limits
from emma.recipes.reading import Composed, read_yaml
from emma.recipes.schema import Recipe
from emma.recipes.schema.merge import Merge
from emma.recipes.schema.optimisation import Optimisation
from emma.recipes.schema.sweep import Sweep

__all__ = [
    "dump_yaml",
    "load_merge",
    "load_optimisation",
    "load_recipe",
    "load_section",
    "load_sweep",
    "load_with_origins",
    "run_file",
    "write_recipe",
]


def _instead(path: Path) -> str:
    """What a path that leads nowhere may mean: its first part that is not there, and what is there in its place."""
    missing = next(part for part in (*reversed(path.parents), path) if not part.exists())
    names = sorted(
        entry.name
        for entry in (missing.parent.iterdir() if missing.parent.is_dir() else ())
        if entry.suffix in (".yaml", ".yml") or entry.is_dir()
    )
    if close := difflib.get_close_matches(missing.name, names, n=1):
        return f"did you mean `{missing.with_name(close[0]) / path.relative_to(missing)}`?"
    return f"there is no {missing}. Fix: correct the path, or name a shipped run (`emma recipe list`)"


def run_file(run: str) -> Path:
    """File of a RUN: a name in recipes/runs, the path of a YAML file, or a run folder (its `recipe.yaml`).

    Raises:
        UserError: there is none.
    """
    path = Path(run)
    if path.is_dir():
        if (path / "recipe.yaml").is_file():
            return path / "recipe.yaml"
        if not (ROOT / "runs" / f"{run}.yaml").is_file():
            raise UserError(
                f"{run}: not a run folder, since it has no recipe.yaml. Fix: name a run folder, a .yaml file or a shipped "
                "run (`emma recipe list`)"
            )
    if run.endswith((".yaml", ".yml")):
        if not path.is_file():
            raise UserError(f"{run}: no such recipe file; {_instead(path)}")
        return path
    shipped = ROOT / "runs" / f"{run}.yaml"
    if shipped.is_file():
        return shipped
    if path.is_file():
        raise UserError(
            f"{run}: not a recipe, whose file's name ends in .yaml. Fix: name a run, or a .yaml file"
        )
    if len(path.parts) > 1:
        raise UserError(f"{run}: no such run folder; {_instead(path)}")
    raise UserError(
        f"no run `{run}` in recipes/runs, no such file or run folder; {nearest(run, list_names('runs'))}"
    )


def load_recipe(run: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, composes and checks the recipe of a run.

    Args:
        run: a name in recipes/runs, the path of a YAML file, or a run folder.
        overrides: `section.key=value` texts, applied in order.

    Raises:
        UserError: mostly a `RecipeError`, with file, key, value and fix.
    """
    return load_with_origins(run, overrides)[0]


def load_with_origins(run: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Composed]:
    """Like `load_recipe`, with the origin of each key."""
    composed = compose_file(run_file(str(run)), overrides)
    recipe: Recipe = _validate(Recipe, composed)
    check_combination(recipe, composed.origin)
    if recipe.paths.umask is not None:
        # All that this process writes from now on is for the recipe.
        set_umask(recipe.paths.umask)
    return recipe, composed


def load_section(section: str, name: str) -> Any:
    """A single section, e.g. `load_section("model", "tiny")` → `Model`; `name` may be a path ending in .yaml.

    Raises:
        UserError: there is no such file, or the section is invalid.
    """
    composed = compose_section(section, name, None)
    return _validate(Recipe.model_fields[section].annotation, composed, (section,))


def load_sweep(sweep: str) -> Sweep:
    """Reads a sweep: a name in recipes/sweeps, or a path ending in .yaml.

    Raises:
        UserError: there is no such sweep, or it is invalid.
    """
    path = Path(sweep) if sweep.endswith((".yaml", ".yml")) else ROOT / "sweeps" / f"{sweep}.yaml"
    if not path.is_file():
        raise UserError(f"no sweep `{sweep}` in recipes/sweeps; {nearest(sweep, list_names('sweeps'))}")
    composed = read_yaml(path)
    composed.values.setdefault("name", path.stem)
    loaded: Sweep = _validate(Sweep, composed, ("sweep",))
    return loaded


def load_merge(path: Path) -> Merge:
    """Reads the recipe of a merge.

    Raises:
        UserError: there is no such file, or it is invalid.
    """
    composed = read_yaml(path)
    composed.values.setdefault("name", path.stem)
    loaded: Merge = _validate(Merge, composed, ("merge",))
    return loaded


def load_optimisation(name: str) -> Optimisation:
    """Reads the settings of an optimisation: a name in recipes/optimisations, or a path ending in .yaml.

    Raises:
        UserError: there are no such settings, or they are invalid.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else ROOT / "optimisations" / f"{name}.yaml"
    if not path.is_file():
        hint = nearest(name, list_names("optimisations"))
        raise UserError(f"no optimisation `{name}` in recipes/optimisations; {hint}")
    composed = read_yaml(path)
    composed.values.setdefault("name", path.stem)
    loaded: Optimisation = _validate(Optimisation, composed, ("optimisation",))
    return loaded


def dump_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    text = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 1000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(recipe.to_dict(), text)
    return text.getvalue()


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe as YAML, atomically; `load_recipe(path)` returns an equal one."""
    write_text(path, f"# Resolved recipe of {recipe.name}; sha256 {recipe.sha256}\n{dump_yaml(recipe)}")


def _validate(schema: Any, composed: Composed, at: tuple[str, ...] = ()) -> Any:
    check_limits(composed.values, composed.origin, at)
    try:
        return schema.model_validate(composed.values)
    except ValidationError as error:
        raise _recipe_error(schema, composed, error) from None


_IN_WORDS = {
    "str": "text",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "nothing",
}


def _recipe_error(schema: Any, composed: Composed, error: ValidationError) -> RecipeError:
    """The first fault as one message. Unknown keys come first, since they often cause the others: a misspelt key is
    unknown under its wrong name and missing under its right one."""
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    parts = [str(part) for part in fault["loc"]]
    key, origin = ".".join(parts) or "recipe", composed.origin(fault["loc"])
    more = f" ({len(faults) - 1} more after this one)" if len(faults) > 1 else ""
    kind, value = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        return RecipeError(key, "unknown key" + more, _right_key(schema, fault["loc"]), origin)
    if kind == "missing":
        # It belongs in the section's own file or, if the section has none, in the run's.
        place = composed.origins.get((parts[0], "name"), composed.origins[()])
        where = f"`{'.'.join(parts[:-1])}`" if parts[:-1] else "the recipe"
        return RecipeError(key, "is required and absent" + more, f"add `{parts[-1]}` to {where}", place)
    if kind == "value_error":
        problem = fault["msg"].removeprefix("Value error, ")
        return RecipeError(key, problem + more, "change one of these values", origin)
    if kind == "literal_error":
        return RecipeError(
            key, f"{value!r} is not a choice{more}", f"use one of {fault['ctx']['expected']}", origin
        )
    if kind.endswith(("_type", "_parsing")):
        expected = fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        article = "" if expected[:2] in ("a ", "an") else "an " if expected[0] in "aeio" else "a "
        given = _IN_WORDS.get(type(value).__name__, type(value).__name__)
        return RecipeError(key, f"{value!r} is {given}{more}", f"give {article}{expected}", origin)
    return RecipeError(
        key, f"{value!r} is out of range{more}", fault["msg"][0].lower() + fault["msg"][1:], origin
    )


def _right_key(schema: Any, location: Sequence[str | int]) -> str:
    """What to write instead of an unknown key: a like one beside it, or the same one of another section."""
    beside, name = _keys_at(schema, location[:-1]), str(location[-1])
    if not difflib.get_close_matches(name, beside, cutoff=0.6):
        there = [
            f"`{section}.{name}`" for section in _keys_at(schema, ()) if name in _keys_at(schema, [section])
        ]
        if there:
            return f"did you mean {' or '.join(there)}?"
    return nearest(name, beside)


def _keys_at(schema: Any, location: Sequence[str | int]) -> list[str]:
    """Keys that the schema knows at a location, for the hint on a misspelt one."""
    current: Any = schema
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = {f.alias or n: f.annotation for n, f in current.model_fields.items()}
            current = fields.get(str(part))
        else:
            current = next((a for a in typing.get_args(current)[::-1] if a is not type(None)), None)
        options = [a for a in typing.get_args(current) if isinstance(a, type) and issubclass(a, BaseModel)]
        if options and typing.get_origin(current) not in (dict, list):
            current = options[0]
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [f.alias or n for n, f in current.model_fields.items()]
    return []
