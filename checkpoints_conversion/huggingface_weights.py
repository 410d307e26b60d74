"""The weights of a Hugging Face folder, under the names of its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch

from emma.base.errors import UserError
from emma.checkpoints_conversion.config import model_from_hf, read_settings
from emma.checkpoints_conversion.parameters import EMBEDDING, OUTPUT, name_of, parameter_shapes
from emma.checkpoints_conversion.safetensors_files import SafetensorsReader
from emma.tools.inspection.models import check_model

__all__ = ["HuggingFaceWeights", "Rows"]

Rows = tuple[int, int]  # first row and number of rows


class HuggingFaceWeights:
    """The weights of a Hugging Face folder, checked against its `config.json`.

    Args:
        folder: holds `config.json` and safetensors files.
        text_only: take the text model out of a model of images and text.

    Attributes:
        left_behind: parameters that do not belong to the text model.

    Raises:
        UserError: of no known architecture, or parameters are missing, superfluous, or of other sizes.
    """

    layout: Literal["huggingface", "megatron"] = "huggingface"

    def __init__(self, folder: Path, *, text_only: bool = False) -> None:
        self.folder = folder
        check_model(folder)
        self.shape = model_from_hf(folder, text_only=text_only)
        self._reader = SafetensorsReader(folder)
        self.files = self._reader.files
        self.left_behind: list[str] = []
        self._stored = self._names(read_settings(folder / "config.json"))
        self._output = name_of(self.shape.model_copy(update={"tie_embeddings": False}), OUTPUT)
        expected = parameter_shapes(self.shape)
        found = {name: self._reader.records[stored].shape for name, stored in self._stored.items()}
        tied_copy = found.pop(self._output, None) if self.shape.tie_embeddings else None
        for name, sizes in expected.items():
            if name not in found:
                hint = " (is tie_word_embeddings meant to be true?)" if name == self._output else ""
                raise UserError(f"{folder}: parameter {name} is missing, but config.json implies it{hint}")
            if found[name] != sizes:
                raise UserError(
                    f"{folder}: parameter {name} has sizes {list(found[name])}, but config.json implies {list(sizes)}; "
                    "weights and config.json are from different models"
                )
        if extra := sorted(found.keys() - expected.keys()):
            raise UserError(
                f"{folder}: parameter {extra[0]} does not belong to architecture {self.shape.architecture} with this "
                f"config.json ({len(extra)} such); converting would lose it"
            )
        if tied_copy is not None:
            self._check_tied(tied_copy)

    def _names(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Parameters under the architecture's names → what the files call them."""
        names = [name for name in self._reader.records if not name.endswith("rotary_emb.inv_freq")]
        part = self.shape.design.huggingface.text_part
        if part is None or config.get("model_type") != part.model_type:
            return {name: name for name in names}
        result = {}
        for name in names:
            if name.startswith(tuple(part.left_behind)):
                self.left_behind.append(name)
                continue
            beginning = next((one for one in part.names if name.startswith(one)), "")
            result[part.names.get(beginning, "") + name.removeprefix(beginning)] = name
        return result

    def _check_tied(self, sizes: tuple[int, ...]) -> None:
        embedding = name_of(self.shape, EMBEDDING)
        if sizes != (self.shape.vocab_size, self.shape.hidden_size):
            raise UserError(
                f"{self.folder}: parameter {self._output} has sizes {list(sizes)}, but config.json ties it to "
                f"{embedding}; weights and config.json are from different models"
            )
        with self.open(self._output) as output, self.open(embedding) as table:
            if output.dtype != table.dtype or not torch.equal(output, table):
                raise UserError(
                    f"{self.folder}: config.json ties input and output embeddings, but {self._output} differs from "
                    f"{embedding}; set tie_word_embeddings to false if both are intended"
                )

    def dtype(self, name: str) -> torch.dtype:
        return self._reader.records[self._stored[name]].dtype

    def open(self, name: str, rows: Rows | None = None) -> AbstractContextManager[torch.Tensor]:
        return self._reader.open(self._stored[name], rows)

    def forget(self, name: str, rows: Rows | None = None) -> None:
        """Drops a parameter, or some of its rows, from the kernel's cache of files."""
        self._reader.forget(self._stored[name], rows)
