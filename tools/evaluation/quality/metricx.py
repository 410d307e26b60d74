"""MetricX: one logit of an mT5 that has read a translation.

Its authors' class (`MT5ForRegression` of github.com/google-research/metricx) is mT5 with a language-model head, of which
the first position's logit of one token is kept. transformers 5 ties that head to the embeddings whatever config.json says,
so here the stack is transformers' and the head's row is applied by hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json, sha256_file
from emma.tools.evaluation.quality.seen import Encoder, encoder_of, quality_table
from emma.tools.evaluation.quality.texts import Translation
from emma.tools.inspection.models import tokenizer_options

__all__ = ["MetricX"]

_ENCODER = "mt5-xl"
_TOKENIZERS = ("spiece.model", "tokenizer.json")
_CLIP = (0.0, 25.0)


class MetricX:
    """A MetricX model: predicted errors of a translation, 0 (none) to 25.

    Args:
        key: its metric in `quality.yaml`.
        folder: the model; files of torch, as released, are read without executing their pickles.
        tokenizer: folder of mT5's tokenizer, which the released models lack; None: the model's.
        batch: translations a batch.
        device: torch device; None: the GPU if there is one.

    Raises:
        UserError: one of the folders holds something else.
    """

    def __init__(
        self,
        key: str,
        folder: Path,
        *,
        tokenizer: Path | None = None,
        batch: int = 16,
        device: str | None = None,
    ) -> None:
        from emma.tools.inspection.models import check_model

        self.key, self.folder, self.batch, self.device = key, folder, batch, device
        self.settings = quality_table()["metrics"][key]
        self.worst = float(self.settings["worst"])
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: contains no config.json; give the folder of a MetricX model")
        config = read_json(folder / "config.json")
        if config.get("model_type") != "mt5" or int(config.get("vocab_size", 0)) <= self.settings["token"]:
            raise UserError(
                f"{folder / 'config.json'}: model_type {config.get('model_type')} with {config.get('vocab_size')} tokens; "
                f"MetricX is an mt5 with more than {self.settings['token']}"
            )
        if config.get("tie_word_embeddings", True):
            raise UserError(
                f"{folder / 'config.json'}: tie_word_embeddings is on; MetricX has a head of its own"
            )
        check_model(folder)
        self.tokenizer = tokenizer or folder
        if not any((self.tokenizer / name).is_file() for name in _TOKENIZERS):
            raise UserError(
                f"{self.tokenizer}: holds no tokenizer (spiece.model or tokenizer.json); give the folder of google/mt5-xl "
                f"with --encoder {key}=FOLDER"
            )
        self.encoder: Encoder = encoder_of(_ENCODER)
        self._loaded: tuple[Any, Any, Any] | None = None

    @property
    def signature(self) -> str:
        """What determines its scores."""
        from emma.base.manifest import package_versions

        if not hasattr(self, "_hash"):
            digest = hashlib.sha256()
            tokenizer = [self.tokenizer / name for name in _TOKENIZERS if (self.tokenizer / name).is_file()]
            for path in (self.folder / "config.json", *self._weights(), *tokenizer):
                digest.update(f"{path.name} {sha256_file(path)}\n".encode())
            self._hash = digest.hexdigest()[:12]
        return "|".join(
            [
                self.key,
                f"encoder:{self.encoder.name}",
                f"sha256:{self._hash}",
                f"transformers:{package_versions(('transformers',)).get('transformers')}",
                f"empty:{self.worst:g}",
            ]
        )

    def score(self, rows: Sequence[Translation]) -> list[float]:
        """The score of each translation; texts beyond the model's length lose their end."""
        import torch

        tokenizer, model, head = self._load()
        texts = [
            self.settings["input"].format(source=row.source, output=row.output, reference=row.reference)
            for row in rows
        ]
        # The authors drop the end-of-sequence token.
        ids = [
            found[:-1]
            for found in tokenizer(texts, max_length=self.settings["longest"], truncation=True)["input_ids"]
        ]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        scores = [0.0] * len(ids)
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            longest = max(1, *(len(ids[place]) for place in places))
            tokens = torch.zeros((len(places), longest), dtype=torch.long)
            mask = torch.zeros_like(tokens)
            for row, place in enumerate(places):
                tokens[row, : len(ids[place])] = torch.tensor(ids[place])
                mask[row, : len(ids[place])] = 1
            with torch.inference_mode():
                states = model(
                    input_ids=tokens.to(model.device),
                    attention_mask=mask.to(model.device),
                    decoder_input_ids=torch.zeros((len(places), 1), dtype=torch.long, device=model.device),
                ).last_hidden_state[:, 0]
                logits = (states @ head).float().tolist()
            for place, value in zip(places, logits, strict=True):
                scores[place] = min(max(value, _CLIP[0]), _CLIP[1])
        return scores

    def _load(self) -> tuple[Any, Any, Any]:
        """Tokenizer, stack, and the head's row of the token, [hidden]."""
        if self._loaded is None:
            import torch
            from transformers import AutoTokenizer, MT5Config, MT5Model

            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer, **tokenizer_options(self.tokenizer))
            tensors = {name: tensor for path in self._weights() for name, tensor in _tensors(path).items()}
            with torch.device("meta"):
                model = MT5Model(MT5Config.from_pretrained(self.folder, **tokenizer_options(self.folder)))
            for stack in ("encoder", "decoder"):
                if "shared.weight" in tensors:
                    tensors.setdefault(f"{stack}.embed_tokens.weight", tensors["shared.weight"])
            lacking = [name for name in (*model.state_dict(), "lm_head.weight") if name not in tensors]
            if lacking:
                raise UserError(
                    f"{self.folder}: lacks {len(lacking)} of the model's tensors; the first is {lacking[0]}"
                )
            head = tensors.pop("lm_head.weight")[self.settings["token"]].clone()
            model.load_state_dict(tensors, assign=True, strict=False)
            self._loaded = tokenizer, model.eval().to(torch.device(device)), head.to(device)
        return self._loaded

    def _weights(self) -> list[Path]:
        """Files of the weights: safetensors, or torch's."""
        found = sorted(self.folder.glob("*.safetensors")) or sorted(self.folder.glob("pytorch_model*.bin"))
        if not found:
            raise UserError(f"{self.folder}: holds neither *.safetensors nor pytorch_model*.bin")
        return found

    def close(self) -> None:
        """Lets go of the model."""
        self._loaded = None


def _tensors(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    from emma.tools.inspection.objects import load

    return dict(load(path))
