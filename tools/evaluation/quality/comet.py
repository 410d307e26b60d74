"""COMET and its relatives by their own package, in a process and an environment of their own.

unbabel-comet wants numpy 1, transformers 4 and huggingface_hub 0, so it cannot be installed beside the rest.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import orjson

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.tools.evaluation.quality.seen import Encoder, encoder_of, quality_table
from emma.tools.evaluation.quality.texts import Translation

__all__ = ["INSTALL", "Comet"]

INSTALL = "python -m venv .venv-comet && .venv-comet/bin/pip install unbabel-comet==2.2.7 'setuptools<81'"
_VERSION = "import importlib.metadata as m; print(m.version('unbabel-comet'))"
_WORKER = Path(__file__).with_name("comet_worker.py")


class Comet:
    """A COMET checkpoint, as COMET saves it: `hparams.yaml` and `checkpoints/model.ckpt`.

    Args:
        key: its metric in `quality.yaml`.
        folder: the checkpoint's.
        python: interpreter of an environment with unbabel-comet.
        encoder_folder: config and tokenizer of the encoder; None: from the Hub's cache.
        batch: translations a batch.
        device: torch device; None: the GPU if there is one.
        trusted: execute the checkpoint's pickle. Otherwise torch reads tensors and plain values only.

    Raises:
        UserError: no such environment, package, checkpoint or encoder, or the checkpoint is of another class.
    """

    def __init__(
        self,
        key: str,
        folder: Path,
        python: Path | None,
        *,
        encoder_folder: Path | None = None,
        batch: int = 16,
        device: str | None = None,
        trusted: bool = False,
    ) -> None:
        self.key, self.batch, self.device, self.trusted = key, batch, device, trusted
        self.worst = float(quality_table()["metrics"][key]["worst"])
        self.checkpoint = folder / "checkpoints" / "model.ckpt"
        settings = self._settings(folder)
        self.kind, self.pretrained = str(settings["class_identifier"]), str(settings["pretrained_model"])
        wanted = quality_table()["metrics"][key]["classes"]
        if self.kind not in wanted:
            raise UserError(
                f"{folder / 'hparams.yaml'}: class_identifier is {self.kind}, but `{key}` stands for {' or '.join(wanted)}; "
                "name the metric that it is"
            )
        if encoder_folder is not None and not (encoder_folder / "config.json").is_file():
            raise UserError(
                f"{encoder_folder}: contains no config.json; give the folder of {self.pretrained}"
            )
        self.encoder_folder = encoder_folder
        self.encoder: Encoder = encoder_of(self.pretrained)
        self.python, self.version = _environment(key, python)
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def _settings(self, folder: Path) -> dict[str, Any]:
        from emma.recipes.reading import read_yaml

        if not self.checkpoint.is_file() or not (folder / "hparams.yaml").is_file():
            raise UserError(
                f"{folder}: not a COMET model, which has hparams.yaml and checkpoints/model.ckpt; download its repository, "
                "and give the folder"
            )
        values = dict(read_yaml(folder / "hparams.yaml").values)
        for field in ("class_identifier", "pretrained_model"):
            if not isinstance(values.get(field), str):
                raise UserError(f"{folder / 'hparams.yaml'}: no {field}, so it is no COMET model")
        return values

    @property
    def signature(self) -> str:
        """What determines its scores."""
        if not hasattr(self, "_hash"):
            self._hash = sha256_file(self.checkpoint)[:12]
        return "|".join(
            [
                self.kind,
                f"encoder:{self.encoder.name}",
                f"sha256:{self._hash}",
                f"unbabel-comet:{self.version}",
                f"empty:{self.worst:g}",
            ]
        )

    def score(self, rows: Sequence[Translation]) -> list[float]:
        """The score of each translation, as `predict` of the package gives it.

        Raises:
            UserError: the process ended, or refused the checkpoint.
        """
        if self._process is None:
            self._start()
        samples = [{"src": row.source, "mt": row.output, "ref": row.reference} for row in rows]
        scores: list[float] = self._ask({"samples": samples})["scores"]
        return scores

    def _start(self) -> None:
        # The process outlives this call, and so does what it says.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment[
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" if self.trusted else "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
        ] = "1"
        self._process = subprocess.Popen(
            [self.python, "-P", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
        )
        self._ask(
            {
                "checkpoint": str(self.checkpoint.resolve()),
                "encoder": str(self.encoder_folder.resolve()) if self.encoder_folder else None,
                "batch": self.batch,
                "gpus": 0 if (self.device or "").startswith("cpu") else _gpus(),
            }
        )

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(orjson.dumps(question) + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self.close()
            raise UserError(f"{self.key}: COMET's process ended without an answer:\n{self._last_words()}")
        answer: dict[str, Any] = orjson.loads(line)
        if "error" in answer:
            self.close()
            raise UserError(f"{self.checkpoint}: {answer['error']}{self._hint(answer['error'])}")
        return answer

    def _hint(self, error: str) -> str:
        if "weights_only" in error.lower() or "WeightsUnpickler" in error:
            return (
                "\nThe checkpoint is a pickle that builds more than tensors. If you trust where it comes from: "
                "--trust-checkpoints"
            )
        if "config and tokenizer" in error and self.encoder_folder is None:
            return f"\nGive the folder of {self.pretrained} with --encoder {self.key}=FOLDER"
        return ""

    def _last_words(self) -> str:
        if self._said is None:
            return ""
        self._said.seek(0)
        return "\n".join(self._said.read().decode(errors="replace").splitlines()[-8:])

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process = None


def _environment(key: str, python: Path | None) -> tuple[Path, str]:
    """The interpreter, and the version of the package there."""
    if python is None:
        raise UserError(
            f"{key}: needs unbabel-comet, in an environment of its own. Fix: {INSTALL}; then give its interpreter with "
            "--comet-python .venv-comet/bin/python"
        )
    if not python.is_file():
        raise UserError(f"--comet-python {python}: no such file. Fix: {INSTALL}")
    found = subprocess.run([python, "-P", "-c", _VERSION], capture_output=True, text=True)
    if found.returncode:
        raise UserError(f"--comet-python {python}: unbabel-comet is not installed there. Fix: {INSTALL}")
    return python.absolute(), found.stdout.strip()


def _gpus() -> int:
    import torch

    return int(torch.cuda.is_available())
