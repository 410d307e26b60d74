"""Makes tiny COMET checkpoints with the package, and scores with its own `predict`; runs in COMET's environment.

python tiny_comet.py make FOLDER       FOLDER/{comet,xcomet}, and FOLDER/encoder with config and tokenizer
python tiny_comet.py predict CHECKPOINT ENCODER     reads samples as JSON, prints their scores
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

ENCODER = "xlm-roberta-large"
SETTINGS = {
    "pretrained_model": ENCODER,
    "encoder_model": "XLM-RoBERTa",
    "load_pretrained_weights": False,
    "hidden_sizes": [16, 8],
    "train_data": [],
    "validation_data": [],
}
TEXT = [
    "All human beings are born free and equal in dignity and rights.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Все люди рождаются свободными и равными в своём достоинстве и правах.",
]


def encoder(folder: Path) -> None:
    """Config and tokenizer of an XLM-R of two layers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import XLMRobertaConfig, XLMRobertaTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    XLMRobertaTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=130,
        type_vocab_size=1,
        initializer_range=0.5,
    ).save_pretrained(folder)


def make(folder: Path) -> None:
    """Checkpoints as COMET's trainer writes them: Lightning's file, and the settings as YAML."""
    import pytorch_lightning
    import torch
    import yaml

    models = importlib.import_module("comet.models")
    encoder(folder / "encoder")
    (folder / ENCODER).symlink_to(folder / "encoder")
    os.chdir(folder)
    for name, kind, more in (
        ("comet", "regression_metric", {}),
        ("xcomet", "xcomet_metric", {"word_layer": 2}),
    ):
        torch.manual_seed(7)
        model = models.str2model[kind](**SETTINGS, **more)
        trainer = pytorch_lightning.Trainer(
            logger=False, enable_checkpointing=False, accelerator="cpu", barebones=False
        )
        trainer.strategy.connect(model)
        trainer.save_checkpoint(folder / name / "checkpoints" / "model.ckpt")
        settings = {**SETTINGS, **more, "class_identifier": kind}
        (folder / name / "hparams.yaml").write_text(yaml.safe_dump(settings))


def predict(checkpoint: Path, folder: Path, samples: list[dict[str, str]]) -> list[float]:
    """What the package's own loader and `predict` give, one sample at a time."""
    models = importlib.import_module("comet.models")
    os.chdir(folder.parent)
    model: Any = models.load_from_checkpoint(str(checkpoint), local_files_only=True)
    return [
        float(model.predict([sample], batch_size=1, gpus=0, progress_bar=False).scores[0])
        for sample in samples
    ]


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        print(json.dumps(predict(Path(sys.argv[2]), Path(sys.argv[3]), json.load(sys.stdin))))
