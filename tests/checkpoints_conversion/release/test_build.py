from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors import safe_open

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, write_json
from emma.base.manifest import Manifest
from emma.checkpoints_conversion.release import licenses
from emma.checkpoints_conversion.release.build import plan_release, write_release
from emma.checkpoints_conversion.release.licenses import text_sha256
from emma.commands.release import group
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.flops import flops_per_token
from tests.checkpoints_conversion.release.released_run import STEPS

_FOREIGN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
inputs = tokenizer("All human beings", return_tensors="pt")
assert inputs["input_ids"][0, 0] == model.generation_config.bos_token_id == tokenizer.bos_token_id
out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
assert model.generation_config.eos_token_id == tokenizer.eos_token_id
assert not {"recipes", "tools", "checkpoints_conversion"} & {name.split(".")[0] for name in sys.modules}
print(out.shape[1] - inputs["input_ids"].shape[1])
"""


def test_folder_loads_and_generates_without_this_project(released: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _FOREIGN],
        cwd=released,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert 0 < int(done.stdout) <= 5


def test_weights_are_those_of_the_export(made: Recipe, released: Path) -> None:
    index = read_json(released / "model.safetensors.index.json")
    shards = sorted(path.name for path in released.glob("*.safetensors"))
    assert len(shards) > 2
    assert set(index["weight_map"].values()) == set(shards)
    export = made.run_folder / "hf" / f"step-{STEPS}" / "model.safetensors"
    with safe_open(export, "pt") as before:
        assert set(index["weight_map"]) == set(before.keys())
        for name, shard in index["weight_map"].items():
            with safe_open(released / shard, "pt") as after:
                assert after.get_tensor(name).equal(before.get_tensor(name))


def test_a_single_shard_has_its_index_too(made: Recipe, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        group, ["model", str(made.run_folder), str(tmp_path / "one"), "--json"], catch_exceptions=False
    )
    assert json.loads(result.stdout)["step"] == STEPS
    assert [path.name for path in (tmp_path / "one").glob("*.safetensors")] == [
        "model-00001-of-00001.safetensors"
    ]
    assert (tmp_path / "one" / "model.safetensors.index.json").is_file()
    verified = CliRunner().invoke(
        group, ["verify", str(tmp_path / "one"), "--generate"], catch_exceptions=False
    )
    assert verified.stdout.endswith(": valid\n")


def test_checksums_are_those_of_sha256sum(released: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=released,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    checked = {line.split(":")[0] for line in done.stdout.splitlines()}
    there = {str(p.relative_to(released)) for p in released.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert checked == there
    assert {
        "README.md",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "parity.json",
        "recipe.yaml",
    } <= there
    assert {"evaluation/results.csv", "evaluation/gains.json", "manifest.json"} <= there
    assert Manifest.read(released).check_outputs(released, contents=True) == []


def test_card_metadata(made: Recipe, released: Path) -> None:
    card = ModelCard.load(released / "README.md")
    data = card.data
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert {"en", "de", "ru", "cmn", "hi", "swh", "yo", "ka", "am"} <= set(data.language)
    gains = read_json(made.run_folder / "evaluation" / "gains.json")
    found = {(r.dataset_type, r.dataset_config): r.metric_value for r in data.eval_results}
    assert found == {
        (f"heldout-{row['kind']}", row["group"]): round(row["trained"], 6) for row in gains["groups"]
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: apache-2.0\n", "license: apache2\n", "license"),
        ("- de\n", "- german\n", "language"),
        ("type: bits_per_byte", "type: ''", "metrics"),
    ],
)
def test_card_passes_the_clients_validation(
    release: Path, address: str, old: str, new: str, message: str
) -> None:
    """`huggingface_hub` sends a card to the Hub for validation; here the local server applies the documented
    rules."""
    path = release / "README.md"
    ModelCard.load(path).validate()
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ModelCard.load(path).validate()


def test_card_text_is_made_of_the_records(made: Recipe, released: Path) -> None:
    text = (released / "README.md").read_text(encoding="utf-8")
    gains = read_json(made.run_folder / "evaluation" / "gains.json")
    for row in gains["groups"]:
        assert f"| {row['group']} | {row['languages']} | {row['base']:.4f} | {row['trained']:.4f} |" in text
    assert "| **monolingual** | 12 |" in text
    assert "| yor_Latn | Yoruba |" in text
    assert f"| Released step | {STEPS} of {STEPS} |" in text
    assert made.sha256 in text
    assert "of device time" in text
    flop = STEPS * made.tokens_per_step * flops_per_token(made.model, made.batch.sequence_length)
    mantissa, exponent = f"{flop:.1e}".split("e+")
    assert (
        f"{mantissa} × 10{str(int(exponent)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))} model FLOPs"
        in text
    )
    lost = [row for row in gains["languages"] if (row["kind"], row["verdict"]) == ("monolingual", "loss")]
    assert ("clearly worse than its base" in text) == bool(lost)
    assert "demonstrates" in text
    assert "{{" not in text
    assert not re.search(r"\n\n\n\n", text)


def test_tokens_of_generation(released: Path) -> None:
    assert read_json(released / "generation_config.json") == {"bos_token_id": 0, "eos_token_id": 1}
    config = read_json(released / "config.json")
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)


def test_wrong_tokens_of_an_export_are_put_right(run: Path, tmp_path: Path) -> None:
    """The papers' published first-generation models end with token 0; a recipe names the real token."""
    export = run / "hf" / f"step-{STEPS}"
    write_json(export / "generation_config.json", {"bos_token_id": 5, "eos_token_id": 7})
    write_release(plan_release(str(run)), tmp_path / "release")
    assert read_json(tmp_path / "release" / "generation_config.json") == {
        "bos_token_id": 0,
        "eos_token_id": [1, 7],
    }


def test_dry_run_writes_nothing(made: Recipe, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        group, ["model", str(made.run_folder), str(tmp_path / "x"), "--dry-run"], catch_exceptions=False
    )
    assert "languages: 12" in result.stdout
    assert not (tmp_path / "x").exists()


def test_licence_of_llama_3(run: Path, made: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("license: apache-2.0", "license: llama3"))
    with pytest.raises(UserError, match="copy of the base model's LICENSE file"):
        write_release(plan_release(str(run)), tmp_path / "release")
    assert list(tmp_path.glob("*release*")) == []
    with pytest.raises(UserError, match="begins with “Llama 3”"):
        plan_release(str(run), name="Emma")
    base = tmp_path / "llama"
    base.mkdir()
    (base / "LICENSE").write_text("agreement")
    (base / "USE_POLICY.md").write_text("policy")
    with pytest.raises(
        CheckFailedError, match=r"LICENSE: its text \(1 word\) is not the Meta Llama 3 Community"
    ):
        write_release(plan_release(str(run), license_from=base), tmp_path / "release")
    texts = {"LICENSE": [text_sha256("agreement")], "USE_POLICY": [text_sha256("Policy.\n")]}
    monkeypatch.setattr(licenses, "_texts", lambda: {"llama3": texts})
    write_release(plan_release(str(run), license_from=base), tmp_path / "release")
    card = ModelCard.load(tmp_path / "release" / "README.md")
    assert card.data.license == "llama3"
    assert "# Llama 3 sample" in card.text
    assert "**Built with Meta Llama 3**" in card.text
    assert "Copyright © Meta Platforms" in (tmp_path / "release" / "NOTICE").read_text(encoding="utf-8")
    assert (tmp_path / "release" / "USE_POLICY.md").read_text() == "policy"
    refused = (
        "my-team/emma-500-8b",
        "my-team/Emma-Llama-3-8B",
        "my-team/llama-2-emma",
        "Llama-3/emma-500-8b",
    )
    for name in refused:
        with pytest.raises(
            UserError, match=f"{name}: the Meta Llama 3 .* begins with “Llama 3”, also on the Hub"
        ):
            CliRunner().invoke(
                group, ["upload", str(tmp_path / "release"), name, "--dry-run"], catch_exceptions=False
            )
    allowed = ["upload", str(tmp_path / "release"), "my-team/Llama-3-Emma", "--dry-run"]
    assert CliRunner().invoke(group, allowed, catch_exceptions=False).exit_code == 0


def _without_parity(export: Path) -> None:
    (export / "parity.json").unlink()


def _failing_parity(export: Path) -> None:
    write_json(
        export / "parity.json", {**read_json(export / "parity.json"), "passed": False, "faults": ["logits"]}
    )


def _parity_without_logits(export: Path) -> None:
    write_json(export / "parity.json", {**read_json(export / "parity.json"), "logits": None})


def _other_weights(export: Path) -> None:
    path = export / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _cut_weights(export: Path) -> None:
    path = export / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _other_shape(export: Path) -> None:
    write_json(export / "config.json", {**read_json(export / "config.json"), "intermediate_size": 65})


def _no_tokenizer(export: Path) -> None:
    (export / "tokenizer.json").unlink()


def _no_export(export: Path) -> None:
    shutil.rmtree(export)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_parity, "released only with proof"),
        (_failing_parity, "parity failed"),
        (_parity_without_logits, "does not compare logits"),
        (_other_weights, "about other weights: 1 tensors differ"),
        (_cut_weights, "the file is truncated"),
        (_other_shape, "do not match"),
        (_no_tokenizer, "has no tokenizer.json"),
        (_no_export, "no export of step"),
    ],
)
def test_refusals_leave_nothing_behind(run: Path, tmp_path: Path, spoil: object, message: str) -> None:
    spoil(run / "hf" / f"step-{STEPS}")  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        write_release(plan_release(str(run)), tmp_path / "release")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_existing_folder_is_kept(run: Path, release: Path, tmp_path: Path) -> None:
    before = (release / "README.md").read_bytes()
    plan = plan_release(str(run))
    with pytest.raises(UserError, match="--overwrite"):
        write_release(plan, release)
    assert (release / "README.md").read_bytes() == before
    write_release(plan, release, overwrite=True)
    assert len(list(release.glob("*.safetensors"))) == 1


def test_scores_of_another_step_are_not_this_ones(run: Path, tmp_path: Path) -> None:
    (run / "hf" / f"step-{STEPS}").rename(run / "hf" / "step-20")
    write_release(plan_release(str(run)), tmp_path / "release")
    text = (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    assert "This step was not evaluated against its base." in text
    assert "model-index" not in text
    assert not (tmp_path / "release" / "evaluation").exists()


def test_generations_accompany_the_release(run: Path, tmp_path: Path) -> None:
    evaluation = run / "evaluation"
    ours = {
        f"samples/sample_step-{STEPS}/flores/deu_Latn.jsonl": "Guten Tag",
        f"lm_eval/runs__sample__hf__step-{STEPS}/samples_xnli_2026-01-01.jsonl": "entailment",
        f"heldout/sample_step-{STEPS}.jsonl": None,  # written by the evaluation
    }
    others = (
        f"samples/sample_step-1{STEPS}/x.jsonl",
        "samples/base/x.jsonl",
        f"samples/misstep-{STEPS}/x.jsonl",
    )
    for name in (*ours, *others):
        path = evaluation / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if ours.get(name, "") is not None:
            path.write_text(ours.get(name) or "another's")
    manifest = write_release(plan_release(str(run)), tmp_path / "release")
    released = tmp_path / "release" / "evaluation"
    assert {str(p.relative_to(released)) for p in released.rglob("*") if p.is_file()} == {
        "results.csv",
        "gains.json",
        "heldout/base.jsonl",
        *ours,
    }
    for name in ours:
        assert (released / name).read_bytes() == (evaluation / name).read_bytes()
        assert f"evaluation/{name}" in {record.path for record in manifest.inputs}
        assert f"evaluation/{name}" in (tmp_path / "release" / "SHA256SUMS").read_text()
    assert "sample by sample (3 files)" in (tmp_path / "release" / "README.md").read_text(encoding="utf-8")


def test_unknown_step(run: Path) -> None:
    with pytest.raises(UserError, match=f"no export of step 3 .*which has steps {STEPS}"):
        plan_release(str(run), 3)


def test_failing_verification_ends_the_release(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "emma.checkpoints_conversion.release.build.render_card", lambda facts, year: "no card"
    )
    with pytest.raises(CheckFailedError, match="metadata `license` is missing"):
        write_release(plan_release(str(run)), tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_the_card_names_the_released_weights(released: Path) -> None:
    assert "| Released weights | those of the forward pass |" in (released / "README.md").read_text()


def _keep_fp8(run: Path, parity: object) -> None:
    """Turns a run into one that kept its weights in FP8, whose export's report says `parity`."""
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    assert "megatron_args: {}" in text
    recipe.write_text(text.replace("megatron_args: {}", "megatron_args: {fp8-param-gather: true}"))
    report = run / "hf" / f"step-{STEPS}" / "parity.json"
    values = read_json(report)
    values["released"] = parity
    write_json(report, values)


@pytest.mark.parametrize("claim", [None, {"weights": "model", "fp8_params": False, "distance": None}])
def test_weights_that_may_be_rounded_to_fp8_are_not_released(run: Path, claim: object) -> None:
    _keep_fp8(run, claim)
    with pytest.raises(UserError, match=r"keeps the model's in FP8 .*: export step 40 again"):
        plan_release(str(run))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (
            "optimizer",
            "the optimizer's main weights, since the run keeps the model's in FP8; from the model's: max",
        ),
        (
            "model",
            r"those of the forward pass, rounded to FP8 (precision.fp8_params); from the optimizer's: max",
        ),
    ],
)
def test_the_card_says_how_far_they_are_apart(run: Path, tmp_path: Path, weights: str, words: str) -> None:
    distance = {"max_abs_delta": 0.0123, "relative_rms": 0.0262}
    _keep_fp8(run, {"weights": weights, "fp8_params": True, "distance": distance})
    write_release(plan_release(str(run)), tmp_path / "release")
    card = (tmp_path / "release" / "README.md").read_text()
    assert f"| Released weights | {words}" in card
    assert "0.0123, relative RMS 2.62% |" in card
