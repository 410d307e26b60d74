"""Turns Llama 3's `tokenizer.model`, as Meta publishes it, into a Hugging Face tokenizer.json.

    python -m benchmarks.llama3 TOKENIZER_MODEL OUT

The file lists 128,000 tokens by rank; the PyPI package `llama-models` holds it (`llama_models/llama3/tokenizer.model`, under
Llama 3's Community License). Writes OUT/tokenizer.json and OUT/tokenizer_config.json.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import click

from benchmarks.tekken import rank_tokenizer
from emma.base.errors import UserError
from emma.base.files import write_json
from emma.tools.demo.commands import run_command

__all__ = ["CONTROL", "PATTERN", "write_llama3"]

# Both are those of `llama_models/llama3/tokenizer.py`; names of control tokens as in Llama 3.1's tokenizer.json.
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTROL = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *(
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
    *(f"<|reserved_special_token_{number}|>" for number in range(3, 248)),
]


def write_llama3(ranks: Path, folder: Path) -> Path:
    """Writes the tokenizer's folder and returns it.

    Raises:
        UserError: `ranks` is no such file.
    """
    tokens = []
    try:
        for number, line in enumerate(ranks.read_bytes().splitlines()):
            token, rank = line.split()
            if int(rank) != number:
                raise ValueError(f"line {number + 1} has the rank {int(rank)}")
            tokens.append(base64.b64decode(token, validate=True))
    except (OSError, ValueError, binascii.Error) as error:
        raise UserError(
            f"{ranks}: is no list of tokens by rank ({error}); name Llama 3's tokenizer.model"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", rank_tokenizer(tokens, PATTERN, CONTROL, control_first=False))
    names = {"bos_token": CONTROL[0], "eos_token": CONTROL[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", names)
    return folder


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
@click.argument("tokenizer_model", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(tokenizer_model: Path, out: Path) -> None:
    click.echo(write_llama3(tokenizer_model, out))


if __name__ == "__main__":
    run_command(main)
