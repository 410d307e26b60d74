"""The plan of a component: inputs, work units, settings, and the languages that the fast engine may encode.

It is made once and kept in `store/<component>/.pack/plan.json` until the component is finished; all processes
and later runs use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.recipes.schema import Recipe
from emma.recipes.schema.data import Pack
from emma.tools.pack.documents import required_fields
from emma.tools.pack.encoder import Encoder
from emma.tools.pack.engine import REFERENCE, EngineName, choose_engine
from emma.tools.pack.inputs import (
    Found,
    InputFile,
    Unit,
    cut_units,
    exceed,
    find_files,
    input_difference,
    inputs_among,
)
from emma.tools.pack.refusal import refused
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

    def found(self, name: str) -> dict[str, Found]:
        """All files that a component's inputs lead to, sorted by path; not all need be of a kind that can be read.

        Raises:
            UserError: there are none.
        """
        return find_files(self._places(name))

    def _places(self, name: str) -> list[str | Path]:
        """Files, folders and patterns of a component's inputs.

        Raises:
            UserError: none is given, and the corpus has none.
        """
        component = self.pack.components[name]
        if component.inputs is not None:
            return list(component.inputs)
        folder = self.corpus / "split" / ("parallel" if component.kind == "bilingual" else name)
        if not folder.is_dir():
            if self.corpus.is_file():
                raise UserError(f"{self.corpus}: a file. Fix: let paths.corpus name a corpus's folder")
            raise UserError(
                f"{folder}: no such folder, so component {name!r} has no input; run the corpus stage, or "
                f"give data.pack.components.{name}.inputs"
            )
        return [folder]

    def exceed(self, names: Iterable[str], most: int) -> bool:
        """Whether the files of components may hold more than `most` bytes of text.

        Raises:
            UserError: a component has no file.
        """
        return exceed((place for name in names for place in self._places(name)), most)

    def inputs(self, name: str) -> tuple[list[InputFile], dict[str, str]]:
        """Input files of a component, sorted by path, and why other files found beside them are passed over.

        Raises:
            UserError: there are none, or one cannot be read.
        """
        return inputs_among(self.found(name), required_fields(self.pack.components[name].kind))

    def input_change(
        self, name: str, before: Iterable[InputFile], passed_over: Mapping[str, str] | None
    ) -> str | None:
        """How a component's input differs from what was recorded (see `input_difference`).

        Raises:
            UserError: there is none.
        """
        required = required_fields(self.pack.components[name].kind)
        return input_difference(before, passed_over, self.found(name), required)

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
    the languages that the gate compared before the first unit; a language that first appears later is gated
    once in each process that meets it. `inputs_passed_over` says by path why files are no inputs. `share` of the documents are encoded
    with the reference too; `certificates` are those of the engines.
    """

    name: str
    settings: dict[str, Any]
    engine: EngineName
    inputs: list[InputFile]
    units: list[Unit]
    refused: list[str]
    trusted: list[str]
    passed_over: dict[str, str] = field(default_factory=dict)
    inputs_passed_over: dict[str, str] = field(default_factory=dict)
    share: float = 0.0
    certificates: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Writes the plan atomically."""
        numbers = {file.path: number for number, file in enumerate(self.inputs)}
        units = [unit.to_json(numbers) for unit in self.units]
        write_json(path, {**vars(self), "inputs": [vars(file) for file in self.inputs], "units": units})

    @classmethod
    def read(cls, path: Path) -> ComponentPlan:
        """Reads a plan.

        Raises:
            UserError: it was written by another version.
        """
        value = read_json(path)
        try:
            value["share"]  # plans of earlier versions lack it
            value["inputs"] = [InputFile(**file) for file in value["inputs"]]
            value["units"] = [
                Unit.from_json(index, unit, value["inputs"]) for index, unit in enumerate(value["units"])
            ]
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
            pairs=settings.pack.components[self.name].kind == "bilingual",
        )

    def engine_now(self, work: Path) -> tuple[EngineName, dict[str, str]]:
        """The engine whose ids the component's units hold, and why faster ones don't.

        Args:
            work: the component's `.pack` folder.
        """
        reasons = refused(work)
        return (REFERENCE if self.engine in reasons else self.engine), {**self.passed_over, **reasons}


def plan_component(settings: PackSettings, name: str) -> ComponentPlan:
    """Lists the inputs of a component and cuts them into units; the gate comes later.

    Raises:
        UserError: no input, or files that cannot be read.
    """
    inputs, passed_over = settings.inputs(name)
    # Text and its tokens are of about the same size; half a shard of text leaves room for scripts with more
    # tokens.
    units = cut_units(inputs, largest=settings.pack.shard_mib << 19)
    engine = choose_engine(settings.pack.engine)
    plan = ComponentPlan(name, settings.of_component(name), engine, inputs, units, [], [])
    return replace(plan, inputs_passed_over=passed_over)


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """First setting in which two mappings differ, as `key was … and is …`; None where they are equal."""
    for key in sorted(set(before) | set(now)):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
    return None
