"""Scores translations with COMET; runs by itself in COMET's environment, and imports nothing of this project.

A line of JSON in, a line of JSON out. First the settings: `checkpoint`, `encoder` (folder or null), `batch`, `gpus`;
answered by `{"ready": {...}}`. Then `{"samples": [{"src", "mt", "ref"}, ...]}`, answered by `{"scores": [...]}`. What
cannot be done is answered by `{"error": "..."}`, and ends the process.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class RefusedError(Exception):
    """The checkpoint is not what it should be; the message says how."""


def main() -> int:
    """Answers on the standard output as it was; what libraries print goes to the standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def answer(value: dict[str, Any]) -> None:
            answers.write(json.dumps(value) + "\n")
            answers.flush()

        try:
            settings = json.loads(sys.stdin.readline())
            model, facts = load(Path(settings["checkpoint"]), settings["encoder"])
            answer({"ready": facts})
            for line in sys.stdin:
                found = model.predict(
                    json.loads(line)["samples"],
                    batch_size=settings["batch"],
                    gpus=settings["gpus"],
                    num_workers=0,
                    progress_bar=False,
                )
                answer({"scores": [float(score) for score in found.scores]})
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side has to hear of it
            answer(
                {"error": f"{'' if isinstance(error, RefusedError) else type(error).__name__ + ': '}{error}"}
            )
            return 1
    return 0


def load(checkpoint: Path, encoder: str | None) -> tuple[Any, dict[str, str]]:
    """The model, by the package's own loader, and facts of it.

    COMET asks the Hub for the encoder's config and tokenizer by name. A folder of that name in the working directory comes
    before the Hub for transformers, so this is where the given one appears.
    """
    import yaml  # type: ignore[import-untyped]

    path = checkpoint.parents[1] / "hparams.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    name = settings.get("pretrained_model")
    with tempfile.TemporaryDirectory() as scratch:
        if encoder is not None:
            place = Path(scratch) / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise RefusedError(f"{path}: pretrained_model {name} is no name on the Hub")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(encoder, target_is_directory=True)
            os.chdir(scratch)
        models, hub = map(importlib.import_module, ("comet.models", "transformers.utils"))
        try:
            # The tokenizer's own loader doesn't say that its files are missing.
            hub.cached_file(name, "config.json", local_files_only=True)
            with _loads() as loads:
                model = models.load_from_checkpoint(str(checkpoint), local_files_only=True)
        except OSError as error:
            raise RefusedError(
                f"the encoder's config and tokenizer ({name}) are not here: {error}"
            ) from error
        finally:
            os.chdir("/")
    if not loads:
        raise RefusedError(
            f"{checkpoint}: this COMET does not load as others do, so what the file lacks cannot be seen"
        )
    if lacking := [name for load in loads for name in load.missing_keys]:
        raise RefusedError(
            f"{checkpoint}: {len(lacking)} of the model's tensors are not in it; the first is {min(lacking)}"
        )
    return model, {"class": str(settings["class_identifier"]), "encoder": str(name)}


@contextlib.contextmanager
def _loads() -> Iterator[list[Any]]:
    """Collects what models say of the checkpoints that they load: COMET leaves tensors that one lacks at random values, without
    a word."""
    from torch.nn import Module

    outcomes: list[Any] = []
    load_state = Module.load_state_dict

    def load(self: Module, *arguments: Any, **options: Any) -> Any:
        outcomes.append(load_state(self, *arguments, **options))
        return outcomes[-1]

    Module.load_state_dict = load  # type: ignore[method-assign]
    try:
        yield outcomes
    finally:
        Module.load_state_dict = load_state  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
