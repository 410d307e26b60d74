"""Builds the release folder of a run's export."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, write_json, write_text
from emma.base.manifest import FileRecord, Manifest, now
from emma.base.staging import check_free_space, staged_folder
from emma.checkpoints_conversion.checkpoint import keeps_fp8
from emma.checkpoints_conversion.config import TokenIds, generation_config, model_from_hf, token_ids_from_hf
from emma.checkpoints_conversion.parameters import parameter_shapes
from emma.checkpoints_conversion.release.card import render_card
from emma.checkpoints_conversion.release.evaluation import copy_evaluation
from emma.checkpoints_conversion.release.facts import CardFacts, card_facts
from emma.checkpoints_conversion.release.licenses import copy_licence_files
from emma.checkpoints_conversion.release.record import write_record
from emma.checkpoints_conversion.release.verify import release_faults
from emma.checkpoints_conversion.release.weights import check_parity, copy_weights, release_files
from emma.checkpoints_conversion.safetensors_files import SafetensorsReader
from emma.checkpoints_conversion.tokenizer_files import copy_tokenizer, has_tokenizer, special_tokens
from emma.recipes.load import write_recipe
from emma.tools.evaluation.targets import exported_steps
from emma.tools.hub.checksums import write_checksums
from emma.tools.inspection.models import check_model
from emma.tools.report.records import RunRecord, read_run

__all__ = ["DEFAULT_SHARD_BYTES", "ReleasePlan", "plan_release", "write_release"]

DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class ReleasePlan:
    """A release that is ready to be written: all checks that don't read weights have passed."""

    record: RunRecord
    step: int
    export: Path
    parity: dict[str, Any]
    facts: CardFacts
    tokens: TokenIds
    bytes: int
    licence_folders: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values."""
        return {
            "model": self.facts.title,
            "export": str(self.export),
            "step": self.step,
            "bytes": self.bytes,
            "license": self.facts.license.id,
            "languages": len(self.facts.languages),
            "evaluated": self.facts.gains is not None,
            "sample_files": self.facts.samples,
        }


def plan_release(
    run: str, step: int | None = None, *, name: str | None = None, license_from: Path | None = None
) -> ReleasePlan:
    """Checks what a release is made from.

    Args:
        run: a RUN.
        step: export to release; by default, the latest.
        name: name of the model on its card; by default, the run's name, with the prefix that the licence
            requires.
        license_from: folder with the base model's licence files, searched first.

    Raises:
        UserError: no such export, no parity report, a damaged or incomplete folder, or a tokenizer without
            the recipe's begin- or end-of-text token.
        CheckFailedError: the parity report fails.
    """
    record = read_run(run)
    steps = exported_steps(record.folder)
    if not steps or (step is not None and step not in steps):
        there = f"which has steps {', '.join(map(str, steps))}" if steps else "which has none"
        raise UserError(
            f"run {record.name}: no export of step {step if step is not None else '(latest)'} in {record.folder / 'hf'}, "
            f"{there}; write it with `emma convert megatron-to-hf`"
        )
    step = steps[-1] if step is None else step
    export = record.folder / "hf" / f"step-{step}"
    check_model(export)
    report = export / "parity.json"
    if not report.is_file():
        raise UserError(
            f"{report}: missing; an export is released only with proof of parity: "
            f"`emma convert verify {record.folder} {export} --step {step}`"
        )
    parity = read_json(report)
    check_parity(parity, report)
    if keeps_fp8(record.recipe.model_dump()) and not (parity.get("released") or {}).get("fp8_params"):
        raise UserError(
            f"{report}: does not say whether these are the optimizer's main weights, and the run keeps the model's in "
            f"FP8 (precision.fp8_params): export step {step} again with `emma convert megatron-to-hf`"
        )
    if not has_tokenizer(export):
        raise UserError(f"{export}: has no tokenizer.json; export again with --tokenizer FOLDER")
    size = _check_tensors(export)
    model = record.recipe.model
    base = Path(model.tokenizer.path)
    return ReleasePlan(
        record,
        step,
        export,
        parity,
        card_facts(record, step, parity, name),
        special_tokens(model.tokenizer, export, model.vocab_size),
        size,
        tuple(folder for folder in (license_from, export, base) if folder is not None),
    )


def _check_tensors(export: Path) -> int:
    """Returns the size of the weights in bytes, after comparing their names and sizes with config.json."""
    reader = SafetensorsReader(export)
    found = {name: record.shape for name, record in reader.records.items()}
    expected = parameter_shapes(model_from_hf(export))
    if wrong := sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    ):
        raise UserError(
            f"{export}: weights and config.json do not match: {wrong[0]} is {found.get(wrong[0])} in the files "
            f"and {expected.get(wrong[0])} according to the config ({len(wrong)} such tensors); export again"
        )
    return sum(record.size for record in reader.records.values())


def write_release(
    plan: ReleasePlan, destination: Path, *, shard_bytes: int = DEFAULT_SHARD_BYTES, overwrite: bool = False
) -> Manifest:
    """Writes the release folder; it appears complete and verified, or not at all.

    Args:
        plan: from `plan_release`.
        destination: folder to write.
        shard_bytes: maximum size of the tensors in one safetensors file.
        overwrite: replace `destination`.

    Raises:
        UserError: `destination` exists, the disk has too little space, or a licence file is missing.
        CheckFailedError: the parity report is about other weights, or the folder fails verification.
    """
    check_free_space(destination, int(plan.bytes * 1.01) + (1 << 20))
    record, export = plan.record, plan.export
    manifest = Manifest("release.model", record.recipe.sha256)
    with staged_folder(destination, overwrite=overwrite) as staging:
        hashes, files = copy_weights(export, staging, shard_bytes)
        check_parity(plan.parity, export / "parity.json", hashes)
        _write_configs(plan, staging)
        copy_tokenizer(export, staging)
        for name in ("parity.json", "parity.html"):
            if (export / name).is_file():
                shutil.copyfile(export / name, staging / name)
        write_recipe(record.recipe, staging / "recipe.yaml")
        evaluation = copy_evaluation(
            *(record.folder / "evaluation", staging / "evaluation", plan.step),
            gains=plan.facts.gains,
        )
        copy_licence_files([plan.facts.license], {plan.facts.license.id: plan.licence_folders}, staging)
        write_record(record, plan.step, staging)
        write_text(staging / "README.md", render_card(plan.facts, now()[:4]))
        manifest.inputs = [FileRecord.of(path, record.folder) for path in _inputs(plan, evaluation)]
        manifest.outputs = release_files(staging, files)
        manifest.counts = {"in": len(hashes), "kept": len(hashes), "removed_by": {}}
        manifest.extra = {**plan.as_dict(), "export": str(export.relative_to(record.folder))}
        manifest.write(staging)
        write_checksums(staging, files)
        if faults := release_faults(staging, read_weights=False):
            raise CheckFailedError("the release is not complete: " + "; ".join(faults))
    return manifest


def _inputs(plan: ReleasePlan, evaluation: list[Path]) -> list[Path]:
    small = [plan.export / name for name in ("manifest.json", "parity.json", "config.json")]
    records = [plan.record.folder / name for name in ("recipe.yaml", "metrics.jsonl", "environment.json")]
    return [path for path in (*small, *records, *evaluation) if path.is_file()]


def _write_configs(plan: ReleasePlan, staging: Path) -> None:
    """Writes config.json as exported, and generation_config.json with the begin and end tokens of the
    recipe's documents; the export's other end tokens (Llama 3's `<|eot_id|>`) are kept."""
    config = read_json(plan.export / "config.json")
    exported = token_ids_from_hf(plan.export, model_from_hf(plan.export).vocab_size)
    end = tuple(dict.fromkeys((*plan.tokens.end, *exported.end)))
    tokens = TokenIds(
        plan.tokens.begin, end, plan.tokens.pad if plan.tokens.pad is not None else exported.pad
    )
    values = generation_config(tokens)
    write_json(staging / "config.json", {**config, **values})
    write_json(staging / "generation_config.json", values)
