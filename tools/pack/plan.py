"""The plan of a component: inputs, work units, settings, and the languages that the fast engine may encode.

It is made once and kept in `store/<component>/.pack/plan.json` until the component is finished; all processes
and later runs use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.recipes.schema import Recipe
from emma.recipes.schema.data import Pack
from emma.tools.pack.engine import Encoder, EngineName, choose_engine
from emma.tools.pack.inputs import InputFile, Unit, cut_units, list_inputs
from emma.tools.pack.store import FORMAT
from emma.tools.pack.tokenizer_file import TokenizerFile

__all__ = ["ComponentPlan", "PackSettings", "plan_component"]


@dataclass(frozen=True)
class PackSettings:
    """What `emma pack` works with.

    Args:
        pack: the recipe's `data.pack`.
        tokenizer: tokenizer file with the model's vocabulary size.
        corpus: `paths.corpus`.
        store: `paths.store`.
        recipe_sha256: hash of the resolved recipe, for the manifest.
    """

    pack: Pack
    tokenizer: TokenizerFile
    corpus: Path
    store: Path
    recipe_sha256: str

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> PackSettings:
        """Settings of a run's recipe."""
        return cls(
            recipe.data.pack,
            TokenizerFile(recipe.model.tokenizer, recipe.model.vocab_size),
            Path(recipe.paths.corpus),
            Path(recipe.paths.store),
            recipe.sha256,
        )

    def inputs(self, name: str) -> list[InputFile]:
        """Input files of a component, sorted."""
        component = self.pack.components[name]
        if component.inputs is not None:
            return list_inputs(component.inputs)
        folder = self.corpus / "split" / ("parallel" if component.kind == "bilingual" else name)
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder, so component {name!r} has no input; run the corpus stage, or "
                f"give data.pack.components.{name}.inputs"
            )
        return list_inputs([folder])

    def of_component(self, name: str) -> dict[str, Any]:
        """Everything but the inputs that the packed bytes depend on."""
        pack, component = self.pack, self.pack.components[name]
        templates = {
            "text": {},
            "bilingual": pack.bilingual.model_dump(),
            "instruction": pack.instruction.model_dump(),
            "code": pack.code.model_dump(),
        }
        return {
            "format": FORMAT,
            "tokenizer_sha256": self.tokenizer.sha256,
            "vocab_size": self.tokenizer.vocab_size,
            "begin_id": self.tokenizer.begin_of_text_id,
            "end_id": self.tokenizer.end_of_text_id,
            "kind": component.kind,
            "language": component.language,
            "template": templates[component.kind],
            "shard_mib": pack.shard_mib,
            "min_tokens": pack.min_tokens,
            "max_tokens": pack.max_tokens,
            "long_documents": pack.long_documents,
        }


@dataclass(frozen=True)
class ComponentPlan:
    """Plan of one component.

    `passed_over` says why engines faster than `engine` cannot read the tokenizer. `refused` and `trusted` are
    the languages that the gate compared before the first unit; languages that first appear later are gated
    within their unit.
    """

    name: str
    settings: dict[str, Any]
    engine: EngineName
    inputs: list[InputFile]
    units: list[Unit]
    refused: list[str]
    trusted: list[str]
    passed_over: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Writes the plan atomically."""
        value = asdict(self)
        write_json(path, value)

    @classmethod
    def read(cls, path: Path) -> ComponentPlan:
        """Reads a plan.

        Raises:
            UserError: it was written by another version.
        """
        value = read_json(path)
        try:
            value["inputs"] = [InputFile(**file) for file in value["inputs"]]
            value["units"] = [Unit.from_dict(unit) for unit in value["units"]]
            return cls(**value)
        except (KeyError, TypeError):
            raise UserError(
                f"{path}: written by another version; remove {path.parent} and pack this component again"
            ) from None

    def encoder(self, settings: PackSettings) -> Encoder:
        """A fresh encoder with the gate's verdicts."""
        return Encoder(
            settings.tokenizer,
            self.engine,
            set(self.refused),
            set(self.trusted),
            settings.pack.gate_documents,
        )


def plan_component(settings: PackSettings, name: str) -> ComponentPlan:
    """Lists the inputs of a component and cuts them into units; the gate comes later.

    Raises:
        UserError: no input, or files that cannot be read.
    """
    inputs = settings.inputs(name)
    # Text and its tokens are of about the same size; half a shard of text leaves room for scripts with more
    # tokens.
    units = cut_units(inputs, largest=settings.pack.shard_mib << 19)
    engine = choose_engine(settings.pack.engine)
    return ComponentPlan(name, settings.of_component(name), engine, inputs, units, [], [])


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """First setting in which two mappings differ, as `key was … and is …`; None where they are equal."""
    for key in sorted(set(before) | set(now)):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
    return None


def input_difference(before: list[InputFile], now: list[InputFile]) -> str | None:
    """How two lists of input files differ, naming one file; None where they are equal."""
    old, new = ({file.path: file for file in files} for files in (before, now))
    for path in sorted(set(old) | set(new)):
        if path not in new:
            return f"{path} is gone"
        if path not in old:
            return f"{path} is new"
        if old[path] != new[path]:
            return (
                f"{path} was changed ({old[path].bytes} bytes then, {new[path].bytes} now, or written again)"
            )
    return None
