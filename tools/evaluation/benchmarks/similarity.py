"""BERTScore: how close an answer's words are to a reference's in an encoder layer (Zhang et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emma.base.files import sha256_file
from emma.tools.evaluation.benchmarks.scores import Score, mean_score
from emma.tools.inspection.models import loading, model_options, tokenizer_options

__all__ = ["LAYER", "BertScore"]

LAYER = 9
"""Layer of bert-base-multilingual-cased that the metric's authors found best."""

_BATCH = 32


class BertScore:
    """F1 of greedily matched token similarities, without idf weights and without a baseline.

    Args:
        folder: an encoder in Hugging Face format; for comparable scores, bert-base-multilingual-cased.
        layer: hidden layer to compare; at most the encoder's last.
        device: torch device; default the GPU if there is one, else the CPU.

    Raises:
        UserError: `transformers` cannot load the encoder.
    """

    def __init__(self, folder: Path, layer: int = LAYER, device: str | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        with loading(folder):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **tokenizer_options(folder))
            model: Any = AutoModel.from_pretrained(folder, dtype="float32", **model_options(folder))
        self.layer = min(layer, model.config.num_hidden_layers)
        self.model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        weights = sorted(folder.glob("*.safetensors"))
        digest = sha256_file(weights[0])[:12] if weights else "no-safetensors"
        self.signature = f"bertscore-f1|layer:{self.layer}|idf:no|baseline:no|encoder:{digest}"

    def score(self, outputs: Sequence[str | None], references: Sequence[str]) -> Score:
        """Mean F1; outputs without words score 0, and outputs of None are left out."""
        wanted = [n for n, text in enumerate(outputs) if text is not None and text.strip()]
        items: list[float | None] = [None if text is None else 0.0 for text in outputs]
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            left = self._embed([outputs[n] or "" for n in batch])
            right = self._embed([references[n] for n in batch])
            for n, (one, own), (other, others) in zip(batch, left, right, strict=True):
                if not own.any() or not others.any():
                    continue
                similarity = one @ other.T
                precision = float(similarity.max(dim=1).values[own].mean())
                recall = float(similarity.max(dim=0).values[others].mean())
                items[n] = 2 * precision * recall / (precision + recall)
        return mean_score(items, self.signature)

    def _embed(self, texts: Sequence[str]) -> list[tuple[Any, Any]]:
        """Unit vectors [tokens, hidden] of each text, and which tokens are words.

        Special tokens can be matched, but have no weight in the averages.
        """
        import torch

        longest = min(self.model.config.max_position_embeddings, 512)
        batch = self.tokenizer(
            list(texts),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=longest,
            return_special_tokens_mask=True,
        ).to(self.model.device)
        special = batch.pop("special_tokens_mask").bool()
        with torch.inference_mode():
            hidden = self.model(**batch, output_hidden_states=True).hidden_states[self.layer]
        vectors = torch.nn.functional.normalize(hidden, dim=-1)
        kept = batch["attention_mask"].bool()
        return [(row[mask], ~marks[mask]) for row, mask, marks in zip(vectors, kept, special, strict=True)]
