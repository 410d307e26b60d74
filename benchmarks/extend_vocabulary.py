"""Time and memory of extending a full-size model's vocabulary, against copying and hashing its bytes.

    python -m benchmarks.extend_vocabulary [--model llama3_8b] [--layers N] [--folder DIR] [--tokens 16384] [--rounds 1]

Makes a model of random BF16 weights (16 GB for Llama 3 8B) and a tokenizer with as many ids, extends the tokenizer on the
demo's text, and then in turn copies the model's files as `cp` does (`cp`), copies them to disk and hashes the copies, as
any verified copy must (`copy`), and extends the model, each in its own process with the input dropped from the page
cache. Ratios are medians over rounds. What a step wrote is deleted before the next, so twice the model's size of free
disk is enough. At the end every old row and every other tensor is compared by SHA-256. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.convert import make_model, measure
from emma.base.files import write_json
from emma.recipes.load import load_section
from emma.recipes.schema.model import Shape
from tests.tools.tokenizer.scripts import DECLARATION
from tests.tools.tokenizer.tiny_corpus import write_corpus


def make_tokenizer(folder: Path, size: int) -> None:
    """A byte-level tokenizer of `size` ids, most of which nothing reaches."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    vocabulary |= {f"unused {number}": number for number in range(len(alphabet), size - 1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end_of_text|>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end_of_text|>"}
    write_json(folder / "tokenizer_config.json", names)


def row_hashes(folder: Path, sizes: dict[str, int]) -> dict[str, str]:
    """SHA-256 of the first rows of each tensor; `sizes` says how many."""
    from emma.checkpoints_conversion.safetensors_files import SafetensorsReader, tensor_bytes
    from emma.checkpoints_conversion.slicing import row_blocks

    reader = SafetensorsReader(folder)
    found = {}
    for name, count in sizes.items():
        digest = hashlib.sha256()
        for rows in row_blocks((count, *reader.records[name].shape[1:])):
            with reader.open(name, rows) as block:
                digest.update(tensor_bytes(block))
        found[name] = digest.hexdigest()
    return found


def main() -> None:
    """Measures; prints one JSON object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama3_8b", help="model recipe (default llama3_8b)")
    parser.add_argument("--layers", type=int, help="use fewer layers, for a quick look")
    parser.add_argument("--tokens", type=int, default=16384, help="new tokens (default 16384)")
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often each is measured, in turn (default 1)"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder for scratch files"
    )
    options = parser.parse_args()
    from emma.base.staging import check_free_space
    from emma.checkpoints_conversion.parameters import parameter_shapes
    from emma.recipes.schema.tokenizer import Extension
    from emma.tools.tokenizer.bpe import open_tokenizer
    from emma.tools.tokenizer.extend import extend

    model = load_section("model", options.model)
    values = model.model_dump(include=set(Shape.model_fields))
    shape = Shape.model_validate(values | ({"layers": options.layers} if options.layers else {}))
    sizes = parameter_shapes(shape)
    size = 2 * sum(map(math.prod, sizes.values()))
    check_free_space(options.folder, int(2.1 * size))
    with tempfile.TemporaryDirectory(prefix="emma-extend-", dir=options.folder) as name:
        root = Path(name)
        base, copy, out = (root / part for part in ("base", "copy", "out"))
        make_model(base, shape)
        make_tokenizer(base, shape.vocab_size)
        corpus = write_corpus(root / "corpus", DECLARATION)
        settings = Extension(tokens=options.tokens, min_count=1)
        made = extend(open_tokenizer(base), corpus, root / "tokenizer", settings)
        before = row_hashes(base, {key: value[0] for key, value in sizes.items()})
        rounds: list[dict[str, dict[str, float]]] = []
        for _ in range(options.rounds):
            shutil.rmtree(out, ignore_errors=True)
            found = {}
            for phase in ("cp", "copy"):
                found[phase] = measure(phase, base, copy)
                shutil.rmtree(copy)
            rounds.append({**found, "extend": measure("extend", base, out)})
        same = row_hashes(out, {key: value[0] for key, value in sizes.items()}) == before
    result = {
        f"{measured}_ratio_to_{phase}": round(
            statistics.median(each["extend"][measured] / each[phase][measured] for each in rounds), 3
        )
        for measured in ("seconds", "processor_seconds")
        for phase in ("copy", "cp")
    } | {
        "rounds": rounds,
        "old_rows_equal_sha256": same,
        "gigabytes": round(size / 1e9, 3),
        "tokens": made.extra["tokens"],
    }
    print(json.dumps(result), flush=True)
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
