"""The shipped recipes: what the papers fix, and that every combination of them works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emma.recipes.compose import FOLDERS, LAYOUTS, ROOT, list_names
from emma.recipes.load import load_recipe, load_section
from tests.command_line import emma

STEP = 2**24

# Run → steps, global batch, sequence length, model, data.
PUBLISHED = {
    "emma_llama2_7b": (12_000, 4096, 4096, "llama2_7b", "mala_generation1"),
    "emma_llama3_8b_mono": (25_000, 2048, 8192, "llama3_8b", "mala_monolingual"),
    "emma_llama3_8b_bi": (40_000, 2048, 8192, "llama3_8b", "mala_bilingual"),
    "emma_llama3.1_8b_mono": (25_000, 2048, 8192, "llama3.1_8b", "mala_monolingual"),
    "emma_llama3.1_8b_bi": (40_000, 2048, 8192, "llama3.1_8b", "mala_bilingual"),
    "emma_llama3_8b_mono_671b": (40_000, 2048, 8192, "llama3_8b", "mala_monolingual_671b"),
    "emma_llama3_8b_bi_419b": (25_000, 2048, 8192, "llama3_8b", "mala_bilingual_419b"),
}


@pytest.mark.parametrize("run", PUBLISHED)
def test_published_values(run: str) -> None:
    steps, batch, length, model, data = PUBLISHED[run]
    recipe = load_recipe(run)
    assert recipe.name == run
    assert recipe.schedule.steps == steps
    assert (recipe.batch.global_, recipe.batch.sequence_length) == (batch, length)
    assert recipe.tokens_per_step == STEP
    assert (recipe.model.name, recipe.data.name) == (model, data)
    assert recipe.start.mode == "weights"


def test_show_resolves_the_bilingual_run() -> None:
    answer = emma("recipe", "show", "emma_llama3_8b_bi", "--json")
    assert answer.code == 0
    recipe = json.loads(answer.out)
    assert recipe["schedule"]["steps"] == 40_000
    assert recipe["batch"]["global"] * recipe["batch"]["sequence_length"] == STEP
    assert recipe["model"]["vocab_size"] == 128_256


def test_controls_differ_from_their_partners_in_one_thing() -> None:
    def differences(one: str, other: str) -> set[str]:
        a, b = load_recipe(one).to_dict(), load_recipe(other).to_dict()
        return {key for key in a if a[key] != b[key]} - {"name", "description"}

    # Same budget, other mix; same mix, other budget (which makes it another virtual dataset).
    assert differences("emma_llama3_8b_mono_671b", "emma_llama3_8b_bi") == {"data"}
    assert differences("emma_llama3_8b_bi_419b", "emma_llama3_8b_mono") == {"data"}
    assert differences("emma_llama3_8b_mono_671b", "emma_llama3_8b_mono") == {"schedule", "data"}
    control, partner = load_recipe("emma_llama3_8b_bi_419b"), load_recipe("emma_llama3_8b_bi")
    assert control.data.mix == partner.data.mix
    assert control.mix_folder != partner.mix_folder


def test_shares_are_the_published_ones() -> None:
    one, two = (load_section("data", name).mix.components for name in ("mala_bilingual", "mala_monolingual"))
    assert {name: c.share for name, c in one.items()} == {
        "monolingual": 26.3,
        "bilingual": 32.3,
        "code": 15.0,
        "papers": 13.2,
        "instruction": 11.4,
        "books": 1.8,
    }
    assert {name: c.share for name, c in two.items()} == {
        "monolingual": 38.9,
        "code": 22.1,
        "papers": 19.5,
        "instruction": 16.8,
        "books": 2.6,
    }
    # The components have the same sizes in both mixes: their shares differ by one factor, what translations leave.
    rest = 1 - 0.323
    for name, component in two.items():
        assert one[name].share / component.share == pytest.approx(rest, abs=0.02)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # As the Hub's safetensors index counts them.
    [("llama2_7b", 6_738_415_616), ("llama3_8b", 8_030_261_248), ("llama3.1_8b", 8_030_261_248)],
)
def test_models_have_the_released_size_and_no_padding(name: str, parameters: int) -> None:
    from emma.tools.arithmetic.parameters import total_parameters

    model = load_section("model", name)
    assert total_parameters(model) == parameters
    assert all(model.padded_vocab_size(tensor) == model.vocab_size for tensor in (1, 2, 4, 8))


def test_llama_31_differs_from_llama_3_in_rope_and_origin() -> None:
    old, new = (load_section("model", name).model_dump() for name in ("llama3_8b", "llama3.1_8b"))
    assert {key for key in old if old[key] != new[key]} == {
        *("name", "max_position_embeddings", "rope_scaling", "tokenizer", "huggingface", "license")
    }
    assert new["rope_scaling"] == {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


@pytest.mark.parametrize("gpus", [8, 16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("run", ["emma_llama3_8b_bi", "emma_llama2_7b"])
def test_every_layout_trains_the_same_batches(run: str, precision: str, gpus: int) -> None:
    recipe = load_recipe(run, [f"layout=h100_{gpus}_{precision}"])
    assert recipe.cluster.world_size == gpus
    assert (recipe.precision.fp8 is not None) == (precision == "fp8")
    assert recipe.tokens_per_step == STEP
    assert recipe.schedule == load_recipe(run).schedule
    assert recipe.precision.grad_reduce_fp32


@pytest.mark.parametrize(
    ("section", "name"),
    [(section, name) for section, folder in FOLDERS.items() for name in list_names(folder)],
)
def test_every_section_file_is_valid(section: str, name: str) -> None:
    assert load_section(section, name).name == name


def test_list_names_everything() -> None:
    answer = emma("recipe", "list", "--json")
    assert answer.code == 0
    listed = json.loads(answer.out)
    assert set(PUBLISHED) <= set(listed["runs"])
    assert listed["runs"]["emma_llama3_8b_bi"]["tokens"] == 40_000 * STEP
    for section, folder in {**FOLDERS, "layout": LAYOUTS}.items():
        assert listed[section] == list_names(folder)
    text = emma("recipe", "list").out
    assert all(run in text for run in PUBLISHED)


RUN_FILES = [
    *sorted(ROOT.glob("runs/emma_*.yaml")),
    *sorted(ROOT.glob("runs/cpt_*.yaml")),
    *sorted(ROOT.glob("runs/parts/*.yaml")),
]

# Keys that say nothing themselves, or name files that hold their own sources.
NAMES = {"description", "extends", "model", "data"}
COUNTS = {"these two": 2, "these three": 3, "these four": 4, "these five": 5}


def without_source(text: str) -> list[str]:
    """Values without a comment, and comments that speak of more values than follow.

    A comment covers the value directly below it, or as many as it says ("These two are published: ...").
    """
    faults: list[str] = []
    comment, covered = "", 0
    for line in [*text.splitlines(), ""]:
        word = line.strip()
        if covered and (not word or word.startswith("#")):
            faults.append(f"covers {covered} more: {comment}")
            comment, covered = "", 0
        if word.startswith("#"):
            comment = f"{comment} {word.lstrip('# ')}".strip()
            continue
        key, _, value = word.partition(": ")
        if not value or (line == word and key in NAMES):
            comment = ""
            continue
        if comment and not covered:
            covered = next((n for words, n in COUNTS.items() if words in comment.lower()), 1)
        if not covered:
            faults.append(f"no source: {word}")
            continue
        covered -= 1
        if not covered:
            comment = ""
    return faults


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_every_value_of_a_run_has_its_source(path: Path) -> None:
    assert without_source(path.read_text()) == []


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_no_source_of_a_value_can_be_missing(path: Path) -> None:
    """Whichever comment is deleted, and whichever value is added, is found."""
    lines = path.read_text().splitlines()
    inside = next(number for number, line in enumerate(lines) if not line)
    starts = [
        number
        for number in range(inside, len(lines))
        if lines[number].lstrip().startswith("#") and not lines[number - 1].lstrip().startswith("#")
    ]
    for start in starts:
        stop = next(n for n in range(start, len(lines)) if not lines[n].lstrip().startswith("#"))
        assert without_source("\n".join(lines[:start] + lines[stop:])), lines[start]
    for number in range(inside, len(lines)):
        if lines[number].startswith("  ") and not lines[number].lstrip().startswith("#"):
            assert without_source("\n".join([*lines[: number + 1], "  added: 1", *lines[number + 1 :]]))
    assert starts or not any(line.startswith("  ") for line in lines)
