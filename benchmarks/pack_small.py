"""Packing many small things, compared with the same text in one file.

    python -m benchmarks.pack_small --folder FOLDER --input TEXT.jsonl [--files 20000] [--pairs 3310] [--workers 1]

Packs the first documents of a text from one file and from a file for each document, and sentence pairs of many language
pairs (a parquet file for each) against the same sentences as plain documents, all in turn, `--repeats` times; and calls
the command once more on the finished store of many files. The tokenizer is tekken; its certificate is made first, apart.
What no text takes, the command's start and its engines, is measured on a text of one line and taken off for the rates. The
last line is JSON: medians of wall and processor seconds, and the rates of small things relative to one file's.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
from pathlib import Path

import orjson
from ruamel.yaml import YAML

from benchmarks.measure import timed
from benchmarks.pack import our_command, write_run
from benchmarks.tekken import write_tekken

_PAIRS_A_FILE = 40


def write_files(text: Path, folder: Path, count: int) -> tuple[Path, Path]:
    """The first `count` documents of a text, cut to 900 characters (repeated if there are fewer): in one file, and in a
    file each."""
    one, many = folder / "one.jsonl", folder / "many" / "text"
    shutil.rmtree(many, ignore_errors=True)
    many.mkdir(parents=True)
    with text.open("rb") as lines:
        found = [orjson.loads(line) for line in itertools.islice(lines, count)]
    with one.open("wb") as handle:
        for number, record in zip(range(count), itertools.cycle(found), strict=False):
            line = orjson.dumps({**record, "text": record["text"][:900]}) + b"\n"
            handle.write(line)
            (many / f"{number:06d}.jsonl").write_bytes(line)
    return one, many


def write_pairs(text: Path, folder: Path, count: int) -> tuple[Path, Path]:
    """Lines of a text as sentence pairs of `count` language pairs, a parquet file each; and as one plain file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain, pairs = folder / "plain.jsonl", folder / "pairs"
    shutil.rmtree(pairs, ignore_errors=True)
    sentences: list[str] = []
    with text.open("rb") as lines:
        for line in lines:
            sentences += [part for part in orjson.loads(line)["text"].split("\n") if 20 < len(part) < 200]
            if len(sentences) > 2 * count * _PAIRS_A_FILE:
                break
    letters = "abcdefghij"
    codes = [f"q{''.join(pair)}_Latn" for pair in itertools.product(letters, letters)]
    stream = itertools.cycle(sentences)
    with plain.open("wb") as handle:
        for source, target in itertools.islice(itertools.combinations(codes, 2), count):
            rows = [
                {
                    "id": f"{source}-{target}/{number}",
                    "src_text": next(stream),
                    "tgt_text": next(stream),
                    "src_lang": source,
                    "tgt_lang": target,
                    "source": "lines",
                    "split": "train",
                }
                for number in range(_PAIRS_A_FILE)
            ]
            path = pairs / f"{source}-{target}" / "part-00000.parquet"
            path.parent.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
            both = "\n".join(f"{row['src_text']}\n{row['tgt_text']}" for row in rows)
            handle.write(orjson.dumps({"id": path.parent.name, "text": both, "language": "plain"}) + b"\n")
    return plain, pairs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder for texts, tokenizer and stores")
    parser.add_argument("--input", type=Path, required=True, help="jsonl with the fields id, text, language")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=3310)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--once", action="store_true", help="encode next to nothing twice (data.pack.fault_share=1)"
    )
    options = parser.parse_args()
    folder: Path = options.folder
    write_tekken(folder / "tekken")
    one, many = write_files(options.input, folder, options.files)
    plain, pairs = write_pairs(options.input, folder, options.pairs)

    def pack(name: str, path: Path, *overrides: str, again: bool = False) -> tuple[float, float]:
        if options.once:
            overrides = (*overrides, "data.pack.fault_share=1")
        command, environment = our_command(folder, path, name, options.workers, *overrides, keep=again)
        if name == "pairs":
            yaml = YAML(typ="safe")
            run = write_run(folder, path, name)
            value = yaml.load(run)
            value["data"]["pack"]["components"]["web"]["kind"] = "bilingual"
            yaml.dump(value, run)
        return timed(command, environment)

    least = folder / "least.jsonl"
    with one.open("rb") as lines:
        least.write_bytes(lines.readline())
    pack("certificate", least, "data.pack.engine=gigatoken")  # so little text would be left to the reference
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.repeats):
        for name, path in (
            ("least", least),
            ("one", one),
            ("many", many),
            ("plain", plain),
            ("pairs", pairs),
        ):
            found.setdefault(name, []).append(pack(name, path))
        found.setdefault("again", []).append(pack("many", many, again=True))
    result: dict[str, float] = {"workers": options.workers}
    for name, times in found.items():
        result[f"{name}_seconds"] = statistics.median(wall for wall, _ in times)
        result[f"{name}_processor_seconds"] = statistics.median(processor for _, processor in times)
    for small, large in (("many", "one"), ("pairs", "plain")):
        rests = [
            result[f"{name}_processor_seconds"] - result["least_processor_seconds"] for name in (large, small)
        ]
        result[f"rate_of_{small}"] = rests[0] / rests[1]
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
