"""Trains the demo's tokenizer on its corpus: `python -P -m emma.tools.demo.tokenizer CORPUS OUT`.

Byte-level BPE built like Llama 3's: the same pre-tokenisation, control tokens after the learned ones, and a
begin-of-text token in front by default. Only the vocabulary is small, so that a tiny model's parameters go to the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emma.base.errors import UserError
from emma.base.files import write_json, write_text
from emma.tools.demo.commands import run_command

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["BEGIN_OF_TEXT", "END_OF_TEXT", "PAD", "capped", "train_tokenizer", "write_tokenizer"]

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PAD = "<|finetune_right_pad_id|>"
CONTROL_TOKENS = (BEGIN_OF_TEXT, END_OF_TEXT, PAD, *(f"<|reserved_special_token_{i}|>" for i in range(5)))

# Llama 3's: contractions, words with one leading character, numbers of up to three digits, punctuation, line ends.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains byte-level BPE.

    Args:
        texts: documents.
        vocab_size: number of token ids, including the control tokens, which take the last ids.

    Returns:
        A tokenizer that puts `BEGIN_OF_TEXT` before a text, as Llama 3's does; identical for identical texts in the
        same order.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS]
    )
    begin = tokenizer.token_to_id(BEGIN_OF_TEXT)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BEGIN_OF_TEXT} $A",
                pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT}:1 $B:1",
                special_tokens=[(BEGIN_OF_TEXT, begin)],
            ),
        ]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, for `AutoTokenizer`."""
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    names = {"bos_token": BEGIN_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD}
    write_json(folder / "special_tokens_map.json", names)
    write_json(
        folder / "tokenizer_config.json",
        {
            **names,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def capped(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Texts until they hold `limit` characters, so that no language dominates the vocabulary."""
    characters = 0
    for text in texts:
        if characters >= limit:
            return
        characters += len(text)
        yield text


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--vocab-size", type=click.IntRange(min=300), default=4096, show_default=True, help="Number of token ids."
)
@click.option(
    "--characters",
    type=click.IntRange(min=1),
    default=50_000,
    show_default=True,
    help="Most characters taken from a language or pair, so that none dominates the vocabulary.",
)
def command(corpus: Path, out: Path, vocab_size: int, characters: int) -> None:
    """Train a byte-level BPE tokenizer on the training documents of CORPUS and write it to the folder OUT.

    For the demo's tiny model only: continual pre-training keeps the tokenizer of its base.
    """
    from emma.recipes.schema.corpus import KINDS
    from emma.tools.demo.corpus_text import languages_of, training_documents

    kinds = [kind for kind in KINDS if (corpus / "split" / kind).is_dir()]
    sources = [(kind, language) for kind in kinds or KINDS[:1] for language in languages_of(corpus, kind)]
    texts = (text for source in sources for text in capped(training_documents(corpus, *source), characters))
    tokenizer = train_tokenizer(texts, vocab_size)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"{corpus}: its text yields {tokenizer.get_vocab_size()} tokens, fewer than --vocab-size {vocab_size}; "
            "add text or lower --vocab-size"
        )
    write_tokenizer(tokenizer, out)
    click.echo(f"{out}: {vocab_size:,} tokens, trained on {len(sources)} languages and pairs")


if __name__ == "__main__":
    run_command(command)
