"""A real tokenizer and a real, tiny, untrained Llama that can be scored, and held-out text for them."""

from __future__ import annotations

from pathlib import Path

TEXTS = {
    "eng_Latn": "All human beings are born free and equal in dignity and rights. They have reason and conscience.",
    "spa_Latn": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "rus_Cyrl": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "cmn_Hans": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。",
    "yor_Latn": "Gbogbo ènìyàn ni a bí ní òmìnira; iyì àti ẹ̀tọ́ kọ̀ọ̀kan sì dọ́gba.",
    "hin_Deva": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
}

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"


def write_tokenizer(folder: Path, *, begin: bool = True) -> None:
    """A byte-level BPE of 384 tokens, which prepends the begin-of-text token as Llama 3's does, unless told not to."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(TEXTS.values()) * 3, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, 0)]
        )
    tokens = {"bos_token": BEGIN} if begin else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, **tokens).save_pretrained(folder)


def write_model(
    folder: Path, *, seed: int = 0, begin: bool = True, positions: int = 64, hidden: int = 32
) -> Path:
    """A Llama of 2 layers with grouped queries and untied embeddings, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    write_tokenizer(folder, begin=begin)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=0 if begin else None,
        eos_token_id=1,
        tie_word_embeddings=False,
        # Weights far from zero, so that scores differ clearly between tokens.
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_corpus(folder: Path, languages: tuple[str, ...] = tuple(TEXTS), documents: int = 4) -> Path:
    """Split stage with one training row and `documents` validation rows of growing length for each language."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for language in languages:
        rows = [
            {
                "id": f"{language}-{number}",
                "text": f"{number}. " + " ".join([TEXTS[language]] * number),
                "language": language,
                "source": "udhr",
                "license": "CC0-1.0",
                "split": "validation",
            }
            for number in range(1, documents + 1)
        ]
        rows.append({**rows[0], "id": f"{language}-train", "text": "never evaluated", "split": "train"})
        path = folder / "split" / "monolingual" / language / "part-00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    return folder
