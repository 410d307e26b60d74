"""What a packing process has when it starts."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.recipes.schema.model import Tokenizer
from emma.tools.pack.tokenizer_file import TokenizerFile
from tests.small_recipe import write_small_run
from tests.tiny_mix import tiny_data
from tests.tiny_text import BEGIN, END, train_tokenizer

SCRIPT = """
import sys

def state(file):
    from emma.tools.pack.engine import _load_fast, load_engine
    load_engine("fastokens", file)
    loads = _load_fast.cache_info()
    return loads.misses, loads.hits > 0, "pandas" in sys.modules

if __name__ == "__main__":
    from emma.tools.pack.workers import read_tokenizer, start_workers, worker_pool
    run = sys.argv[1]
    from emma.base.arrow import keep_pandas_out
    from emma.recipes.load import load_recipe
    from emma.tools.pack.plan import PackSettings
    from emma.tools.pack.tokenizer_file import TokenizerFile
    keep_pandas_out()
    recipe = load_recipe(run, ["data.pack.engine=fastokens"])
    model = recipe.model
    if sys.argv[2] == "early":
        start_workers(PackSettings.of_recipe(recipe))
    with worker_pool(2, "fastokens", model.tokenizer, model.vocab_size) as pool:
        file = TokenizerFile(model.tokenizer, model.vocab_size)
        read_tokenizer(file, pool)
        # Whoever reads the file again, reads another one.
        open(model.tokenizer.path + "/tokenizer.json", "w").close()
        for _ in range(6):
            print(*pool.submit(state, file).result())
"""


@pytest.mark.parametrize("start", ["early", "late"])
def test_every_process_starts_with_the_engine_and_without_pandas(tmp_path: Path, start: str) -> None:
    tokenizer = train_tokenizer(tmp_path / "tokenizer")
    run = write_small_run(tmp_path, tiny_data().model_dump(mode="json"), tokenizer)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(run), start],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 True False"] * 6


COUNTS = """
import os, sys
from collections import Counter

if __name__ == "__main__":
    from emma.recipes.schema.model import Tokenizer
    from emma.tools.pack.inputs import Unit
    from emma.tools.pack.workers import renew_after, worker_pool
    tokenizer = Tokenizer(path="nowhere", end_of_text="</s>")
    for size, count in ((0, 12), (53, 12), (54, 12), (256, 12), (8, 40), (8, 42), (8, 80), (8, 0)):
        with worker_pool(2, "tokenizers", tokenizer, 512) as pool:
            [pool.submit(os.getpid).result() for _ in range(5)]  # what came before does not count
            renew_after(pool, [Unit(n, (), size << 20) for n in range(count)], 2)
            found = Counter(pool.submit(os.getpid).result() for _ in range(count))
            print(size, count, *sorted(found.values()))
"""


def test_a_process_is_replaced_after_packing_enough_bytes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(COUNTS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0 12 6 6",
        "53 12 3 3 3 3",
        "54 12 2 2 2 2 2 2",
        "256 12 1 1 1 1 1 1 1 1 1 1 1 1",
        "8 40 20 20",
        "8 42 6 12 12 12",  # not 2 after twice 20
        "8 80 17 21 21 21",
        "8 0",
    ]


def test_a_run_that_does_not_exist_is_reported_once(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "emma.cli",
        "pack",
        "run",
        str(tmp_path / "no.yaml"),
        "--workers",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


def test_what_another_process_has_read_of_a_tokenizer_is_adopted(tmp_path: Path) -> None:
    folder = train_tokenizer(tmp_path / "tokenizer")
    settings = Tokenizer(path=str(folder), begin_of_text=BEGIN, end_of_text=END)
    read, own = TokenizerFile(settings, 512), TokenizerFile(settings, 512)
    content = pickle.loads(pickle.dumps(read.read()))
    assert len(pickle.dumps(content)) < 5000
    own.adopt(content)
    (folder / "tokenizer.json").rename(folder / "elsewhere.json")
    own.check()
    assert (own.sha256, own.end_of_text_id, own.added) == (read.sha256, read.end_of_text_id, read.added)
    assert own.control_ids.tolist() == read.control_ids.tolist()
    (folder / "elsewhere.json").rename(folder / "tokenizer.json")
    assert own.ids == read.ids


def test_what_is_read_later_is_the_file_that_was_adopted(tmp_path: Path) -> None:
    folder = train_tokenizer(tmp_path / "tokenizer")
    settings = Tokenizer(path=str(folder), begin_of_text=BEGIN, end_of_text=END)
    own = TokenizerFile(settings, 512)
    own.adopt(TokenizerFile(settings, 512).read())
    with (folder / "tokenizer.json").open("a") as handle:
        handle.write("\n")
    with pytest.raises(UserError, match="was changed while it was in use"):
        _ = own.ids
