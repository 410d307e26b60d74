"""`emma pack` and `emma mix` from the command line: one run from text to mix, and what goes wrong."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.command_line import emma
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_corpus, tiny_data
from tests.tiny_text import END, train_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose corpus, store, and mix were made by the commands."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(folder / "tokenizer")
    make_tiny_corpus(folder / "corpus")
    path = str(write_small_run(folder, tiny_data().model_dump(mode="json"), tokenizer))
    dry = emma("pack", "run", path, "--dry-run", "--json")
    assert dry.code == 0 and not (folder / "store").exists()
    assert {row["component"]: row["files"] for row in json.loads(dry.out)} == {
        "monolingual": 6,
        "bilingual": 2,
    }
    packed = emma("pack", "run", path, "--workers", "1")
    assert packed.code == 0, packed.err
    assert (
        "monolingual: packed: " in packed.out
        and "in 240 documents of 240 records (removed: none" in packed.out
    )
    built = emma("mix", "build", path)
    assert built.code == 0, built.err
    assert "80 samples of 32 tokens (2,560)" in built.out and "documents cut: " in built.out
    return path


def test_pack_verify_and_peek(run: str) -> None:
    good = emma("pack", "verify", run, "--workers", "1", "--json")
    assert good.code == 0
    assert {name: entry["faults"] for name, entry in json.loads(good.out).items()} == {
        "monolingual": [],
        "bilingual": [],
    }
    shown = emma("pack", "peek", run, "--language", "swh_Latn", "--count", "2")
    assert shown.code == 0
    assert shown.out.count("── monolingual swh_Latn") == 2 and shown.out.count(END) == 2
    pair = json.loads(
        emma("pack", "peek", run, "--language", "eng_Latn-swh_Latn", "--count", "1", "--json").out
    )
    assert len(pair) == 1 and "[Swahili]: " in pair[0]["text"]
    nothing = emma("pack", "peek", run, "--language", "xxx_Latn")
    assert nothing.code == 2 and "no document of xxx_Latn" in nothing.err
    near = emma("pack", "peek", run, "--language", "swa_Latn", "--component", "monolingual")
    assert near.code == 2 and "holds no 'swa_Latn'; it has swh_Latn" in near.err


def test_mix_verify_and_peek(run: str) -> None:
    good = emma("mix", "verify", run)
    assert good.code == 0 and "80 samples" in good.out and "no fault" in good.out
    rows = json.loads(emma("mix", "peek", run, "--language", "swh_Latn", "--count", "2", "--json").out)
    assert [row["language"] for row in rows] == ["swh_Latn"] * 2
    assert all(row["text"].endswith(END) for row in rows)
    for row in rows:
        sample = json.loads(emma("mix", "peek", run, "--sample", str(row["sample"]), "--json").out)
        assert row["row"] in [piece["row"] for piece in sample]
        assert sum(piece["tokens"] for piece in sample) == 33
    group = emma("mix", "peek", run, "--group", "language-swh_Latn", "--count", "1")
    assert "swh_Latn" in group.out
    for arguments, message in (
        (("--sample", "80"), "has samples 0 to 79, not 80"),
        (("--language", "swa_Latn"), "holds no 'swa_Latn'; it has swh_Latn"),
        (("--group", "x"), "no validation group 'x'"),
    ):
        wrong = emma("mix", "peek", run, *arguments)
        assert wrong.code == 2 and message in wrong.err


def test_another_plan_is_another_mix(run: str) -> None:
    wrong = emma("mix", "verify", run, "schedule.steps=11")
    assert wrong.code == 1 and "this recipe's mix would be" in wrong.err
    refused = emma("mix", "build", run, "schedule.steps=11")
    assert refused.code == 2 and "holds another mix" in refused.err and "--replace" in refused.err
    dry = emma("mix", "build", run, "schedule.steps=11", "--dry-run", "--json")
    assert json.loads(dry.out)["planned_tokens"] == 88 * 32


def test_plan_of_a_run_writes_table_and_plot(run: str, tmp_path: Path) -> None:
    planned = emma("mix", "plan", run, "--output", str(tmp_path / "plan"))
    assert planned.code == 0, planned.err
    assert "monolingual   high" in planned.out and "2,560  of a budget of 2,560" in planned.out
    table = pq.read_table(tmp_path / "plan" / "plan.parquet").to_pylist()
    assert sum(row["tokens"] for row in table) == 2560
    assert (tmp_path / "plan" / "plan.svg").read_text().startswith("<svg")
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["faults"] == []


def test_a_failing_plan_is_shown_and_exits_with_one(run: str) -> None:
    capped = "data.mix.components.monolingual.max_epochs=1.0"
    short = emma(
        "mix", "plan", run, "schedule.steps=200", capped, "--output", str(Path(run).parent / "short")
    )
    assert short.code == 1
    assert "share asked for" in short.out and "component monolingual gets" in short.err


def test_bad_calls(run: str) -> None:
    for arguments, code, message in (
        (("pack", "run", run, "--shard", "3/3"), 2, "expected i/n with 0 ≤ i < n"),
        (("pack", "run", run, "--shard", "0/3", "--finish"), 2, "give one of them"),
        (
            ("pack", "run", run, "data.pack.min_tokens=9"),
            2,
            "begun with other settings: min_tokens was 2 and is now 9",
        ),
        (("pack", "run", run, "--component", "x"), 2, "no component 'x'"),
        (("mix", "plan"), 2, "name a RUN"),
        (("mix", "plan", "--data", "mala_bilingual"), 2, "give --stats CSV"),
        (
            ("mix", "plan", "--data", "nothing", "--stats", "x.csv"),
            2,
            "there is no recipe `nothing` in recipes/data",
        ),
        (("mix", "build", run, "paths.store=nowhere"), 2, "run `emma pack run` first"),
    ):
        answer = emma(*arguments)
        assert answer.code == code and message in answer.err, (arguments, answer)


def published(path: Path, name: str, rows: list[tuple[str, int]]) -> Path:
    """A CSV like the released statistics."""
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        if name == "lang_code":
            writer.writerow(["lang_code", "num_texts", "num_tokens"])
            writer.writerows([language, words // 100, words] for language, words in rows)
        else:
            writer.writerow(["lang_pair", "src_num_texts", "src_num_tokens", "tgt_num_tokens"])
            writer.writerows([pair, words // 20, words // 2, words - words // 2] for pair, words in rows)
    return path


def test_the_papers_mixes_are_planned_to_the_token_from_published_counts(tmp_path: Path) -> None:
    """Counts like the released ones (27 languages above a billion words, ...): several files may follow one
    --stats."""
    rng = np.random.default_rng(0)
    sizes = {9: 27, 8: 79, 7: 68, 6: 162, 5: 210, 4: 100}
    languages = [
        (
            f"l{power}{i}_Latn",
            int(10**power * rng.uniform(1.01, 3)) if power == 9 else int(10**power * rng.uniform(1.01, 9.9)),
        )
        for power, count in sizes.items()
        for i in range(count)
    ]
    pairs = [(f"a{i}_Latn-b{i}_Latn", int(10 ** rng.uniform(5, 10.2))) for i in range(2507)]
    files = [
        str(published(tmp_path / "monolingual_tokens.csv", "lang_code", languages)),
        str(published(tmp_path / "bilingual_tokens.csv", "lang_pair", pairs)),
    ]
    both = emma("mix", "plan", "--data", "mala_bilingual", "--stats", *files, "--json")
    assert both.code == 0, both.err
    plan = json.loads(both.out)
    assert plan["planned_tokens"] == 671_088_640_000
    asked = {
        "monolingual": 26.3,
        "bilingual": 32.3,
        "code": 15.0,
        "papers": 13.2,
        "instruction": 11.4,
        "books": 1.8,
    }
    for name, share in asked.items():
        assert plan["components"][name]["share_percent"] == pytest.approx(share, abs=0.1)
    counts = {c["category"]: c["sources"] for c in plan["categories"] if c["component"] == "monolingual"}
    assert counts == {"high": 27, "medium-high": 79, "medium": 68, "medium-low": 162, "low": 210}
    mono = json.loads(emma("mix", "plan", "--data", "mala_monolingual", "--stats", files[0], "--json").out)
    assert mono["planned_tokens"] == 419_430_400_000
    asked = {"monolingual": 38.9, "code": 22.1, "papers": 19.5, "instruction": 16.8, "books": 2.6}
    for name, share in asked.items():
        assert mono["components"][name]["share_percent"] == pytest.approx(share, abs=0.1)


def test_neither_packing_nor_mixing_imports_torch(run: str) -> None:
    code = (
        "import sys; from tests.command_line import emma\n"
        "from emma.tools.mix import build, peek, verify\nfrom emma.tools.pack import run, verify as v, peek as p\n"
        f"assert emma('mix', 'plan', {run!r}, '--json').code == 0\n"
        f"assert emma('pack', 'run', {run!r}, '--workers', '1').code == 0\n"
        "assert not {'torch', 'megatron', 'transformers'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
