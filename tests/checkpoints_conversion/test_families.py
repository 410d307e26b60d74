"""Every architecture: there and back bit for bit, Megatron's own keys, transformers' logits and gradients; and each way
to get it wrong is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from emma.checkpoints_conversion.checkpoint import find_checkpoint
from emma.checkpoints_conversion.parameters import global_sizes
from emma.recipes.schema.architecture import architecture_names
from tests.checkpoints_conversion import family_ranks, megatron_ranks
from tests.checkpoints_conversion.families import CASES, build, save
from tests.checkpoints_conversion.tiny_models import read_tensors, same_bits
from tests.ranks import run_ranks

# Longer than the windows and than the contexts that RoPE was scaled from.
TEXT = {"x": ["The quick brown fox jumps over the lazy dog. " * 3]}
OPTIONS: dict[str, Any] = {"length": 96, "mixed_length": 0}


# One case an architecture in the normal tier; the others, and what loads many models, in the slow one.
FAST = [
    "llama tied, scaled",
    "mistral, window",
    "qwen2",
    "qwen3",
    "smollm3",
    "olmo2",
    "olmo3",
    "gemma3",
    "apertus",
]
SLOW = [case for case in CASES if case not in FAST]
TIERS = [pytest.param(FAST, id="fast"), pytest.param(SLOW, id="others", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each case, the model and its import."""
    root = tmp_path_factory.mktemp("families")
    result = {}
    for number, case in enumerate(CASES):
        source, target = save(case, root / f"hf-{number}"), root / f"megatron-{number}"
        hf_to_megatron.convert(source, target)
        result[case] = (source, target)
    return result


def test_every_architecture_has_a_case(imported: dict[str, tuple[Path, Path]]) -> None:
    assert {find_checkpoint(imported[case][1]).shape.architecture for case in FAST} == set(
        architecture_names()
    )


@pytest.mark.parametrize("case", [*FAST, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
def test_bits_come_back(case: str, imported: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, target = imported[case]
    megatron_to_hf.convert(target, tmp_path / "hf")
    assert same_bits(read_tensors(source), read_tensors(tmp_path / "hf"))


@pytest.mark.slow
def test_released_folders_load_with_transformers_alone(
    imported: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """One that only knows config.json and the weights; and it computes what the source computes."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 99)[None] % 300
    for number, (source, target) in enumerate(imported.values()):
        folder = tmp_path / str(number)
        megatron_to_hf.convert(target, folder)
        with torch.no_grad():
            one, other = (
                AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")(ids).logits
                for path in (source, folder)
            )
        assert torch.equal(one, other), source


@pytest.mark.parametrize("cases", TIERS)
def test_keys_are_those_that_megatron_stores(
    cases: list[str], imported: dict[str, tuple[Path, Path]]
) -> None:
    shapes = [find_checkpoint(imported[case][1]).shape for case in cases]
    (stored,) = run_ranks(family_ranks.stored_keys, 1, shapes)
    for shape, keys in zip(shapes, stored, strict=True):
        assert keys == global_sizes(shape), shape.architecture


@pytest.mark.parametrize("cases", TIERS)
def test_logits_are_transformers(cases: list[str], imported: dict[str, tuple[Path, Path]]) -> None:
    (reports,) = run_ranks(_compare, 1, [imported[case] for case in cases], timeout=400)
    for case, report in zip(cases, reports, strict=True):
        assert report["passed"], (case, report["faults"])
        assert report["logits"]["max_abs_delta"] < 1e-5, case


def _compare(pairs: list[tuple[Path, Path]]) -> list[dict[str, Any]]:
    return megatron_ranks.compare(pairs, texts=TEXT, **OPTIONS)


@pytest.mark.slow
def test_gradients_at_tensor_2_are_transformers(
    imported: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """The gradients of transformers' model pass through the import like weights, and meet Megatron's in its own layout."""
    import torch

    tokens = [(7 * position + 3) % 300 for position in range(96)]
    cases = []
    for number, case in enumerate(CASES):
        if case == "qwen3 tied, head width":  # one query group cannot be divided
            continue
        model = build(case)
        ids = torch.tensor([tokens])
        logits = model(ids).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.grad)
        model.save_pretrained(tmp_path / f"hf-{number}")
        hf_to_megatron.convert(tmp_path / f"hf-{number}", tmp_path / f"gradients-{number}")
        target = imported[case][1]
        cases.append((find_checkpoint(target).shape, target, tmp_path / f"gradients-{number}", tokens))
    for ranks in run_ranks(family_ranks.gradients, 2, cases, timeout=600):
        for (shape, *_), found in zip(cases, ranks, strict=True):
            worst = max(found, key=lambda name: found[name])
            assert found[worst] < 1e-5, (shape.architecture, worst, found[worst])


Tensors = dict[str, Any]


def _swap(one: str, other: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if f".{one}." in name]:
            twin = name.replace(f".{one}.", f".{other}.")
            tensors[name], tensors[twin] = tensors[twin], tensors[name]

    return change


# case → name of a mistake → keys of config.json that are wrong, or weights that are.
MISTAKES: dict[str, dict[str, dict[str, Any] | Callable[[Tensors], None]]] = {
    "mistral, window": {"window one too wide": {"sliding_window": 21}, "no window": {"sliding_window": None}},
    "qwen2": {"biases of key and value swapped": _swap("k_proj", "v_proj")},
    "qwen3": {"norms of query and key swapped": _swap("q_norm", "k_norm")},
    "smollm3": {
        "layers inverted": {"no_rope_layers": [0, 0, 0, 1]},
        "RoPE everywhere": {"no_rope_layers": [1, 1, 1, 1]},
    },
    "olmo2": {"norms swapped": _swap("post_attention_layernorm", "post_feedforward_layernorm")},
    "olmo3": {
        "no YaRN": {"rope_parameters": None, "rope_scaling": None},
        "window one too narrow": {"sliding_window": 19},
        "all windows": {"layer_types": ["sliding_attention"] * 4},
    },
    "gemma3": {
        "linear factor": {"rope_parameters": None, "rope_scaling": None},
        "query scale": {"query_pre_attn_scalar": 16},
        "local base": {
            "rope_parameters": None,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_local_base_freq": 20000.0,
        },
        "window": {"sliding_window": 21},
        "norms swapped": _swap("post_attention_layernorm", "post_feedforward_layernorm"),
    },
    "apertus": {"activation's numbers swapped": _swap("act_fn.alpha_p", "act_fn.alpha_n")},
}


@pytest.mark.slow
def test_mistakes_are_refused(imported: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """By `emma convert verify`: by what config.json says or by the weights, and by the logits, which know neither."""
    from safetensors.torch import save_file

    lines, names = [], []
    for case, mistakes in MISTAKES.items():
        source, target = imported[case]
        for name, mistake in mistakes.items():
            wrong = tmp_path / f"wrong-{len(names)}"
            shutil.copytree(source, wrong)
            if callable(mistake):
                tensors = read_tensors(wrong)
                # `alpha_p` has no `.weight` after it.
                padded = {f"{key}." if "act_fn" in key else key: value for key, value in tensors.items()}
                mistake(padded)
                save_file(
                    {key.rstrip("."): value for key, value in padded.items()},
                    wrong / "model.safetensors",
                    {"format": "pt"},
                )
            else:
                config = json.loads((wrong / "config.json").read_text()) | mistake
                (wrong / "config.json").write_text(
                    json.dumps({k: v for k, v in config.items() if k != "rope_parameters" or v})
                )
            names.append(f"{case}: {name}")
            lines.append(
                [
                    "convert",
                    "verify",
                    str(wrong),
                    str(target),
                    "--output",
                    str(tmp_path / "report"),
                    "--json",
                    "--mixed-length",
                    "0",
                    "--length",
                    "96",
                ]
            )
    (answers,) = run_ranks(megatron_ranks.command, 1, *lines, timeout=500)
    for name, (code, out, error) in zip(names, answers, strict=True):
        assert code == 1, (name, error)
        report = json.loads(out)
        assert report["shape_differences"] or report["tensors"]["different"], name
        assert report["logits"]["max_abs_delta"] > 1e-4, (name, report["logits"]["max_abs_delta"])


def _follow_the_guide(folder: Path) -> dict[str, Any]:
    """The guide's file among the architectures, and a model of it imported, exported and compared."""
    from transformers import GemmaConfig, GemmaForCausalLM

    from emma.recipes.schema import architecture
    from tests.checkpoints_conversion.families import COMMON

    shutil.copytree(architecture.FOLDER, folder / "architectures")
    guide = (Path(__file__).parents[2] / "docs" / "add_a_base_model.md").read_text()
    text = guide.split("# recipes/architectures/gemma.yaml\n")[1].split("```")[0]
    (folder / "architectures" / "gemma.yaml").write_text(text)
    architecture.FOLDER = folder / "architectures"
    architecture.architecture.cache_clear()
    model = GemmaForCausalLM(GemmaConfig(**{**COMMON, "head_dim": 24, "hidden_act": "gelu_pytorch_tanh"}))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.1, 0.6)
    model.save_pretrained(folder / "hf")
    hf_to_megatron.convert(folder / "hf", folder / "megatron")
    megatron_to_hf.convert(folder / "megatron", folder / "back")
    assert same_bits(read_tensors(folder / "hf"), read_tensors(folder / "back"))
    return _compare([(folder / "hf", folder / "megatron")])[0]


def test_the_guides_example_is_an_architecture(tmp_path: Path) -> None:
    (report,) = run_ranks(_follow_the_guide, 1, tmp_path)
    assert report["passed"], report["faults"]
    assert report["logits"]["max_abs_delta"] < 1e-5
