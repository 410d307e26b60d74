"""Writing a mix of 50 million rows, and opening it, compared with stock Megatron's blend of the same sources.

    python -m benchmarks.mix --folder FOLDER [--rows 50]

Makes a token store of 546 languages and 2,507 pairs (benchmarks/synthetic_store.py: real document tables, sparse
`.bin` files), then

- builds a mix from it with `emma mix build` (wall and processor time and memory of the whole command), again with other
  shares, and with best-fit samples; verifies the first with `emma mix verify`;
- builds mixes from smaller stores that differ only in documents or only in tokens, to show what the time depends on;
- opens the first mix's training dataset in a fresh process, cold and warm, and reads its first and last sample;
- opens the same sources as stock Megatron does: one GPTDataset per source, blended by weight, for as many samples. Its
  first start builds and caches indices, its second start finds them.

Datasets are opened with the default limit of 1,024 open files; stock Megatron also gets a limit that suffices. Timing
starts after the imports. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from benchmarks.measure import Measured, measure
from benchmarks.synthetic_store import VOCAB_SIZE, language_codes, make_component, make_holes, pair_codes
from emma.tools.mix.catalogue import load_catalogue
from emma.tools.mix.index import IndexWriter
from emma.tools.mix.layout import read_dataset_info, read_mix
from emma.tools.pack.store import open_component
from emma.tools.runs.checksums import drop_from_cache

_LENGTH = 8192
_BATCH = 64
_TOKENS = 1000
_LANGUAGES, _PAIRS = 546, 2507
_OPEN_FILES = 1024
_SHARES = {"monolingual": 55, "bilingual": 45}
_OTHER_SHARES = {"monolingual": 40, "bilingual": 60}


# ---- writing --------------------------------------------------------------------------------------------------------


def make_store(folder: Path, documents: int, tokens: int = _TOKENS) -> Path:
    """A store of `documents` documents with `tokens` tokens on average."""
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make_component(partial, "monolingual", language_codes(_LANGUAGES), documents * 55 // 100, tokens, 1)
        make_component(partial, "bilingual", pair_codes(_PAIRS), documents * 45 // 100, tokens, 2)
        partial.rename(folder)
    return folder


def build(
    folder: Path, store: Path, name: str, tokens: int, shares: dict[str, int], packing: str = "concatenate"
) -> Measured:
    """Measures the whole command `emma mix build` for a budget of `tokens`."""
    run = {
        "name": name,
        "model": {
            "name": "none",
            "layers": 1,
            "hidden_size": 64,
            "ffn_hidden_size": 64,
            "attention_heads": 1,
            "query_groups": 1,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": _LENGTH,
            "tokenizer": {"path": str(folder / "no-tokenizer"), "end_of_text": "</s>"},
        },
        "data": {
            "name": name,
            "pack": {"components": {"monolingual": {"kind": "text"}, "bilingual": {"kind": "bilingual"}}},
            "mix": {
                "components": {
                    name: {
                        "share": share,
                        "max_epochs": 8.0,
                        "categories": {
                            "high": {"at_least": 10_000_000},
                            "medium": {"at_least": 1_000_000, "factor": 2.0},
                            "low": {"at_least": 0, "factor": 4.0},
                        },
                    }
                    for name, share in shares.items()
                },
                "packing": packing,
                "validation": {"omit_small": True},
            },
        },
        "precision": "fp32",
        "cluster": {"name": "cpu", "gpus_per_node": 1, "device": "cpu"},
        "batch": {"micro": 1, "global": _BATCH, "sequence_length": _LENGTH},
        "schedule": {"steps": -(-tokens // (_BATCH * _LENGTH)), "learning_rate": 1e-4},
        "start": {"mode": "scratch"},
        "checkpoint": {"interval": 1},
        "paths": {"store": str(store), "mix": str(folder / "mix")},
    }
    path = folder / f"{name}.yaml"
    YAML(typ="safe").dump(run, path)
    shutil.rmtree(folder / "mix" / name, ignore_errors=True)
    return _emma_mix("build", path)


def _emma_mix(command: str, run: Path) -> Measured:
    """Measures `emma mix COMMAND RUN`."""
    arguments = [sys.executable, "-P", "-m", "emma.cli", "mix", command, str(run)]
    return measure(arguments, {**os.environ, "EMMA_PROGRESS": "0"})


def watch_reads(store: Path) -> Callable[[], int | None]:
    """Returns a function that counts the `.bin` files read since, by access time (None if access times are off)."""
    paths = sorted(store.rglob("*.bin"))
    for path in paths:
        # Older than the last change, so that the next access is recorded even where most are not (relatime).
        os.utime(path, ns=(0, path.stat().st_mtime_ns))

    def count() -> int | None:
        found = sum(path.stat().st_atime_ns != 0 for path in paths)
        with paths[0].open("rb") as handle:
            handle.read(1)
        return found if paths[0].stat().st_atime_ns else None

    return count


def scaling(folder: Path, documents: int) -> list[dict[str, float]]:
    """Build times of stores that differ only in tokens, then only in documents."""
    results = []
    for count, tokens in ((documents, _TOKENS // 10), (documents, _TOKENS), (documents * 4, _TOKENS // 4)):
        store = make_store(folder / f"store-{count}-{tokens}", count, tokens)
        name = f"scaling-{count}-{tokens}"
        budget = count * tokens
        seconds = build(folder, store, name, budget, _SHARES).seconds
        rows = read_dataset_info(folder / "mix" / name / "train").rows
        results.append({"documents": count, "rows": rows, "tokens": budget, "seconds": round(seconds, 2)})
        shutil.rmtree(store)
        shutil.rmtree(folder / "mix" / name)
    return results


# ---- opening --------------------------------------------------------------------------------------------------------


def dataset_config(**options: Any) -> Any:
    """Megatron's dataset configuration, with a tokenizer that only knows its vocabulary size."""
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

    tokenizer = SimpleNamespace(
        eod=128_001, eos=128_001, pad=-1, vocab_size=VOCAB_SIZE, unique_identifiers={"class": "none"}
    )
    return GPTDatasetConfig(
        random_seed=1,
        sequence_length=_LENGTH,
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        **options,
    )


def open_ours(folder: Path) -> float:
    """Seconds to open the training dataset of a mix and read its first and last sample."""
    from emma.tools.training.dataset import open_dataset

    config = dataset_config()
    begin = time.perf_counter()
    dataset = open_dataset(folder / "train", config)
    for index in (0, len(dataset) - 1):
        dataset[index]
    return time.perf_counter() - begin


def open_stock(folder: Path) -> float:
    """The same for stock Megatron: one dataset per source, blended."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset

    blend = orjson.loads((folder / "blend.json").read_bytes())
    config = dataset_config(
        blend=(blend["prefixes"], blend["weights"]), split="1,0,0", path_to_cache=str(folder / "cache")
    )
    begin = time.perf_counter()
    sizes = [blend["samples"], 0, 0]
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]
    for index in (0, len(dataset) - 1):
        dataset[index]
    return time.perf_counter() - begin


def make_stock(folder: Path, mix: Path) -> None:
    """Writes a Megatron dataset with a sparse `.bin` for every source, and the blend that equals the mix's plan."""
    info = read_mix(mix)
    planned = {
        (row["component"], row["language"]): row["tokens"]
        for row in pq.read_table(mix / "plan.parquet").to_pylist()
    }
    prefixes, weights = [], []
    folder.mkdir(parents=True)
    for name in info.components:
        catalogue = load_catalogue(open_component(mix / info.store / name))
        training = np.flatnonzero(~catalogue.validation)
        training = training[np.argsort(catalogue.language[training], kind="stable")]
        bounds = np.searchsorted(catalogue.language[training], np.arange(len(catalogue.languages) + 1))
        for code, language in enumerate(catalogue.languages):
            lengths = catalogue.tokens[training[bounds[code] : bounds[code + 1]]]
            if not planned.get((name, language)):
                continue
            prefix = folder / f"{name}-{language}"
            writer = IndexWriter(prefix.with_suffix(".idx"), np.dtype(np.int32), len(lengths))
            ends = np.cumsum(lengths, dtype=np.int64) * 4
            writer.put(0, lengths, ends - lengths * np.int64(4))
            writer.close()
            make_holes(prefix.with_suffix(".bin"), int(ends[-1]))
            prefixes.append(str(prefix))
            weights.append(float(planned[name, language]))
    blend = {"prefixes": prefixes, "weights": weights, "samples": info.samples}
    (folder / "blend.json").write_bytes(orjson.dumps(blend))


def drop_caches(folders: Sequence[Path]) -> str:
    """Empties the page cache if permitted, else drops the pages of the files in the folders; says which."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "drop_caches"
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        drop_from_cache(path)
    return "fadvise"


def opened(which: str, folder: Path, limit: int) -> dict[str, Any]:
    """Opens in a new process; `seconds`, or the `error` that it ended with."""
    arguments = ["--open", which, str(folder), "--open-files", str(limit)]
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.mix", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        # The first error is the cause; the others come from half-made objects.
        return {"error": next((line for line in lines if re.match(r"\w+Error: ", line)), lines[-1])}
    return {"seconds": round(float(process.stdout.splitlines()[-1]), 3)}


def measure_stock(folder: Path) -> dict[str, Any]:
    """Stock Megatron's first and second start, for each limit of open files."""
    results: dict[str, Any] = {}
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    for name, limit in (("default_open_files", _OPEN_FILES), ("enough_open_files", enough)):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        starts = {}
        for start in ("first", "second"):
            # The page cache stays: stock needs time to build, then files.
            starts[start] = opened("stock", folder, limit)
            print(f"stock, {limit} open files, {start} start: {starts[start]}", flush=True)
        results[name] = {"limit": limit, **starts}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="folder for stores and mixes; takes 8 GB of disk")
    parser.add_argument("--rows", type=int, default=50, help="millions of rows in the mix (default 50)")
    parser.add_argument("--open", nargs=2, metavar=("WHICH", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--open-files", type=int, default=_OPEN_FILES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        warnings.simplefilter("ignore")
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.open_files, options.open_files))
        which, folder = options.open
        print((open_ours if which == "ours" else open_stock)(Path(folder)))
        return
    if options.folder is None:
        parser.error("--folder is needed")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = options.rows * 1_000_000
    begin = time.perf_counter()
    # Four fifths of the rows: a document is read 1.25 times on average.
    store = make_store(folder / f"store-{options.rows}", rows * 4 // 5)
    print(
        f"store of {rows * 4 // 5:,} documents: {time.perf_counter() - begin:.1f} s (not counted)", flush=True
    )
    budget = int(rows * _TOKENS * 1.01)
    first = build(folder, store, "first", budget, _SHARES)
    info = read_dataset_info(folder / "mix" / "first" / "train")
    verified = _emma_mix("verify", folder / "first.yaml")
    packed = build(folder, store, "packed", budget, _SHARES, "best_fit")
    shutil.rmtree(folder / "mix" / "packed")
    for what, each in (("build", first), ("verify", verified), ("build, best fit", packed)):
        print(
            f"{what}, {info.rows:,} rows: {each.seconds:.1f} s, {each.processor_seconds:.1f} processor seconds, "
            f"{each.peak_gib:.2f} GiB",
            flush=True,
        )
    shutil.rmtree(folder / "mix" / "other", ignore_errors=True)
    watch = watch_reads(store)
    other = build(folder, store, "other", budget, _OTHER_SHARES)
    bins_read = watch()
    print(f"other shares: {other.seconds:.1f} s, {other.peak_gib:.2f} GiB", flush=True)
    shutil.rmtree(folder / "mix" / "other")
    scales = scaling(folder, rows // 10)
    for scale in scales:
        print(scale, flush=True)
    mix = folder / "mix" / "first"
    before = {path: path.stat().st_mtime_ns for path in mix.rglob("*")}
    cold_by = drop_caches([mix, store])
    cold, warm = (opened("ours", mix, _OPEN_FILES) for _ in range(2))
    untouched = before == {path: path.stat().st_mtime_ns for path in mix.rglob("*")}
    print(f"ours: cold {cold}, warm {warm}", flush=True)
    shutil.rmtree(folder / "stock", ignore_errors=True)
    make_stock(folder / "stock", mix)
    stock = measure_stock(folder / "stock")
    result = {
        "rows": info.rows,
        "seconds": round(first.seconds, 2),
        "peak_gib": round(first.peak_gib, 2),
        "processor_seconds": round(first.processor_seconds, 1),
        "verify": {key: round(value, 2) for key, value in vars(verified).items()},
        "best_fit": {key: round(value, 2) for key, value in vars(packed).items()},
        "open_cold_s": cold["seconds"],
        "open_warm_s": warm["seconds"],
        "stock": stock,
        "other_shares_seconds": round(other.seconds, 2),
        "other_shares_bin_files_read": bins_read,
        "scaling": scales,
        "sources": sum(1 for source in info.sources if source.documents),
        "samples": info.samples,
        "cold_by": cold_by,
        "opening_wrote_nothing": untouched,
    }
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
