"""Small tokenizers in the form of published models' files: their normalizers, pre-tokenizers, models, decoders,
post-processors and added tokens, trained on a few sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.tiny_text import SENTENCES

__all__ = ["STYLES", "Style", "write_style"]

_QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Style:
    """How to make a tokenizer, and its document boundaries.

    Attributes:
        make: an untrained tokenizer without added tokens, with its trainer.
        special: control tokens, in order.
        ordinary: added tokens that text may become.
        special_first: control tokens have the first ids of the vocabulary, as sentencepiece's do; else they follow it.
        begin: opens documents.
        end: closes documents.
        unknown: whether text can become the token for what the vocabulary lacks.
    """

    make: Callable[[], tuple[Tokenizer, Any]]
    special: Sequence[str]
    end: str
    begin: str | None = None
    ordinary: Sequence[AddedToken] = ()
    special_first: bool = False
    unknown: bool = False


def _sentences() -> Iterator[str]:
    for sentences in SENTENCES.values():
        yield from sentences


def _byte_level(pattern: str | None, *, nfc: bool = False, **model: Any) -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.BPE(**model))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return tokenizer, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)


_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_fallback(*, gemma: bool) -> tuple[Tokenizer, Any]:
    """Llama 2's (prefix space by a normalizer) or Gemma's (spaces replaced, split at them)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    if gemma:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps if gemma else [*steps, decoders.Strip(" ", 1, 0)])
    first = ["<pad>", "<eos>", "<bos>", "<unk>"] if gemma else ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + 256 + 300,
        special_tokens=[*first, *_BYTES],
        limit_alphabet=80,
        show_progress=False,
    )
    return tokenizer, trainer


def _word_piece() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return tokenizer, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)


def _unigram() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False
    )


STYLES: dict[str, Style] = {
    "qwen": Style(
        lambda: _byte_level(_QWEN, nfc=True),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"],
        end="<|endoftext|>",
        ordinary=[
            AddedToken(text, normalized=False)
            for text in ("<tool_call>", "</tool_call>", "<think>", "</think>")
        ],
    ),
    "olmo": Style(
        lambda: _byte_level(None, nfc=True),
        ["<|endoftext|>", "<|padding|>"],
        end="<|endoftext|>",
        ordinary=[
            *(AddedToken(" " * size, normalized=True) for size in range(24, 1, -1)),
            *(AddedToken(f"|||{what}|||", normalized=False) for what in ("IP_ADDRESS", "EMAIL_ADDRESS")),
        ],
    ),
    "llama3": Style(
        lambda: _byte_level(_LLAMA3, ignore_merges=True),
        ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(6))],
        begin="<|begin_of_text|>",
        end="<|end_of_text|>",
    ),
    "mistral": Style(
        lambda: _byte_level(_TEKKEN, ignore_merges=True),
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<SPECIAL_{i}>" for i in range(5, 12))],
        begin="<s>",
        end="</s>",
        special_first=True,
    ),
    "llama2": Style(
        lambda: _byte_fallback(gemma=False),
        ["<unk>", "<s>", "</s>"],
        begin="<s>",
        end="</s>",
    ),
    "gemma": Style(
        lambda: _byte_fallback(gemma=True),
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        begin="<bos>",
        end="<eos>",
        ordinary=[
            *(AddedToken("\n" * size, normalized=False) for size in range(8, 1, -1)),
            *(AddedToken(f"<unused{i}>", normalized=False) for i in range(4)),
            AddedToken("<table>", normalized=False),
        ],
    ),
    "wordpiece": Style(
        _word_piece, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], begin="[CLS]", end="[SEP]", unknown=True
    ),
    "unigram": Style(
        _unigram, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], begin="<s>", end="</s>", unknown=True
    ),
}


def write_style(folder: Path, name: str) -> Path:
    """Trains a style's tokenizer and writes `folder/tokenizer.json`."""
    style = STYLES[name]
    tokenizer, trainer = style.make()
    if style.special_first and name == "mistral":
        trainer = trainers.BpeTrainer(
            vocab_size=trainer.vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=list(style.special),
            show_progress=False,
        )
    tokenizer.train_from_iterator(_sentences(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in style.special])
    # After the control tokens, as in the published files: without those, the library would number them anew.
    tokenizer.add_tokens(list(style.ordinary))
    folder.mkdir(parents=True, exist_ok=True)
    value = json.loads(tokenizer.to_str())
    # Trainers make every token that they are given a control token; published files don't list the bytes.
    value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] not in _BYTES]
    (folder / "tokenizer.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return folder
