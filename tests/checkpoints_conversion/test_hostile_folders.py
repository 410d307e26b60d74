"""Model folders that are damaged or made to harm: one message each, at once, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from emma.base.errors import UserError
from emma.base.manifest import Manifest
from emma.checkpoints_conversion import hf_to_megatron
from emma.cli import cli
from tests.checkpoints_conversion.tiny_models import read_tensors, save_llama, save_tokenizer


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_llama(tmp_path_factory.mktemp("good") / "hf"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "hf"))


def _set(name: str = "config.json", **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(values))

    return change


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def _directory(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def _pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _rope(**changes: Any) -> Callable[[Path], None]:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return _set(
        rope_parameters={**scaling, "original_max_position_embeddings": 64, "rope_theta": 5e5, **changes}
    )


def _auto_map(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("open('attacked', 'w')\n")
    _set(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, model_type="evil")(folder)


def _large_id(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"]["unused300"] = 517
    (folder / "tokenizer.json").write_text(json.dumps(values))


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a billion layers": (_set(num_hidden_layers=10**9), "`num_hidden_layers` is 1000000000: at most 1,000"),
    "more layers than integers": (_set(num_hidden_layers=10**30), "num_hidden_layers"),
    "a huge vocabulary": (_set(vocab_size=2**40), "`vocab_size` is 1099511627776: at most 4,194,304"),
    "a huge width": (_set(hidden_size=2**60), "`hidden_size` is"),
    "no layers": (_set(num_hidden_layers=0), "`num_hidden_layers` is 0"),
    "negative heads": (_set(num_attention_heads=-8), "`num_attention_heads` is -8"),
    "no heads of keys": (_set(num_key_value_heads=0), "`num_key_value_heads` is 0"),
    "a fraction": (_set(num_hidden_layers=2.5), "`num_hidden_layers` is 2.5"),
    "a truth value": (_set(num_hidden_layers=True), "`num_hidden_layers` is True"),
    "a text as a size": (_set(hidden_size="64"), "`hidden_size` is '64'"),
    "a list as a size": (_set(hidden_size=[64]), r"`hidden_size` is \[64\]"),
    "an absurd text": (_set(model_type="x" * 10**6), "`model_type` is 'xxx"),
    "a text as a truth value": (_set(tie_word_embeddings="no"), "`tie_word_embeddings` is 'no'"),
    "a text as RoPE": (
        _set(rope_parameters=None, rope_scaling="llama3"),
        "`rope_scaling` is 'llama3', not an object",
    ),
    "a list as RoPE": (_set(rope_parameters=[1, 2]), r"`rope_parameters` is \[1, 2\], not an object"),
    "NaN in JSON": (_write("config.json", b'{"model_type": "llama", "rope_theta": NaN}'), "not valid JSON"),
    "a RoPE base that is a text": (_rope(rope_theta="NaN"), "`rope_theta` is 'NaN'"),
    "two RoPE bases": (
        _set(rope_theta=7.0, rope_parameters={"rope_type": "default", "rope_theta": 8.0}),
        "correct one",
    ),
    "a RoPE factor of nothing": (_rope(factor=None), "lacks factor"),
    "a RoPE that is turned around": (_rope(low_freq_factor=9.0), "must be above low_freq_factor"),
    "a RoPE type that is a list": (_rope(rope_type=["llama3"]), "unknown rope type"),
    "nested JSON": (_write("config.json", b'{"a":' + b"[" * 10**6), "not valid JSON"),
    "a long list": (_write("config.json", b"[" + b"0," * (9 << 20) + b"0]"), "bytes are no settings"),
    "a number": (_write("config.json", b"7"), "holds int instead of an object"),
    "binary": (_write("config.json", bytes(range(256))), "not valid JSON"),
    "a folder": (_directory("config.json"), "not a file"),
    "a pipe": (_pipe, "not a file"),
    "a loop of links": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("config.json"))[0],
        "cannot be read|no such file",
    ),
    "code": (_auto_map, "custom code of a model is never run"),
    "generation settings that are a list": (_write("generation_config.json", b"[]"), "holds list instead"),
    "an end token beyond the vocabulary": (
        _set("generation_config.json", eos_token_id=517),
        "no token id from 0 to 516",
    ),
    "a negative begin token": (_set("generation_config.json", bos_token_id=-1), "no token id"),
    "an end token that is a text": (_set("generation_config.json", eos_token_id="</s>"), "no token id"),
    "end tokens in end tokens": (_set("generation_config.json", eos_token_id=[[2]]), "no token id"),
    "an empty tokenizer": (_write("tokenizer.json", b""), r"tokenizer\.json: no tokenizer"),
    "a cut tokenizer": (
        lambda f: os.truncate(f / "tokenizer.json", 1000),
        r"tokenizer\.json: no tokenizer",
    ),
    "a tokenizer without a model": (_write("tokenizer.json", b"{}"), r"no tokenizer \(Model missing"),
    "a binary tokenizer": (_write("tokenizer.json", bytes(range(256))), "not UTF-8"),
    "a nested tokenizer": (_write("tokenizer.json", b"[" * 10**6), "no tokenizer"),
    "a tokenizer that is a folder": (_directory("tokenizer.json"), r"tokenizer\.json: not a file"),
    "a tokenizer that leads nowhere": (
        lambda f: ((f / "tokenizer.json").unlink(), (f / "tokenizer.json").symlink_to("../blobs/x"))[0],
        r"tokenizer\.json: not a file",
    ),
    "a token beyond the vocabulary": (
        _large_id,
        "500 tokens, but the model has 517 ids, and 'unused300' is 517",
    ),
    "settings of a tokenizer that are a list": (_write("tokenizer_config.json", b"[]"), "holds list instead"),
    "an added token beyond the vocabulary": (
        _set("tokenizer_config.json", added_tokens_decoder={"517": {"content": "<|new|>"}}),
        "has the id '517', which is none from 0 to 516",
    ),
    "an added token without an id": (
        _set("tokenizer_config.json", added_tokens_decoder={"x": {"content": "<|new|>"}}),
        "has the id 'x'",
    ),
    "an index that is a text": (
        lambda f: (
            (f / "model.safetensors").unlink(),
            _write("model.safetensors.index.json", b'{"weight_map":"a"}')(f),
        )[0],
        "has no `weight_map`",
    ),
    "weights that are a folder": (_directory("model.safetensors"), "neither model.safetensors nor"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pytorch_model.bin files, which can run code",
    ),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_hostile_folder(folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = HOSTILE[kind]
    change(folder)
    started = time.monotonic()
    for more in ([], ["--dry-run"]):
        result = CliRunner().invoke(
            cli, ["convert", "hf-to-megatron", str(folder), str(tmp_path / "out"), *more]
        )
        fault = result.exception
        assert isinstance(fault, UserError), (type(fault), fault, result.output)
        with pytest.raises(UserError, match=message):
            raise fault
        text = str(fault)
        assert text.startswith(str(folder))
        assert "\n" not in text
        assert len(text) < 1000
    assert time.monotonic() - started < 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def _change_tensor(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    from safetensors.torch import save_file

    tensors = read_tensors(folder)
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_that_are_not_finite(tmp_path: Path, value: float, dtype: str) -> None:
    folder = save_llama(tmp_path / "hf", dtype=dtype)

    def plant(tensor: Any) -> None:
        tensor[61, 3] = value
        tensor[95, 63] = -value

    _change_tensor(folder, UP, plant)
    with pytest.raises(
        UserError, match=rf"{UP} has 2 values that are not finite, the first \(.*\) at \[61, 3\]"
    ) as caught:
        hf_to_megatron.convert(folder, tmp_path / "out")
    assert "--allow-nonfinite" in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=UP):
        hf_to_megatron.convert(folder, tmp_path / "out", allow_nonfinite=["model.norm.weight"])
    manifest = hf_to_megatron.convert(folder, tmp_path / "out", allow_nonfinite=[UP])
    assert manifest.extra["nonfinite"] == {UP: {"count": 2, "first": [61, 3]}}
    assert Manifest.read(tmp_path / "out").extra["nonfinite"] == manifest.extra["nonfinite"]


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight"]
)
def test_every_kind_of_parameter_is_looked_at(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    monkeypatch.setattr(hf_to_megatron, "_VOCABULARY_BLOCK", 64 * 4 * 100)  # the embedding in six blocks
    folder = Path(shutil.copytree(good, tmp_path / "hf"))
    position = 0 if place == "first" else -1
    index: list[int] = []

    def plant(tensor: Any) -> None:
        flat = tensor.view(-1)
        flat[position] = float("nan")
        index.extend([0] * tensor.dim() if place == "first" else [size - 1 for size in tensor.shape])

    _change_tensor(folder, name, plant)
    with pytest.raises(UserError, match=f"{name} has 1 values .* at {re.escape(str(index))}"):
        hf_to_megatron.convert(folder, tmp_path / "out")


def test_a_cast_that_overflows(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "hf", dtype="bfloat16")
    _change_tensor(folder, UP, lambda tensor: tensor[2, 1].fill_(1e6))
    with pytest.raises(
        UserError, match=r"not finite after the cast to float16, the first \(inf\) at \[2, 1\]; choose"
    ):
        hf_to_megatron.convert(folder, tmp_path / "out", dtype="fp16")
    hf_to_megatron.convert(folder, tmp_path / "out")


def test_names_to_allow(good: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--allow-nonfinite model\.norm: .* has no such parameter"):
        hf_to_megatron.convert(good, tmp_path / "out", allow_nonfinite=["model.norm"])


def test_zeros_are_reported(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "hf"))
    _change_tensor(folder, UP, lambda tensor: tensor.zero_())
    _change_tensor(folder, "model.embed_tokens.weight", lambda tensor: tensor[7:9].zero_())
    line = ["convert", "hf-to-megatron", str(folder), str(tmp_path / "out")]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.exception
    assert f"warning: parameter {UP} consists of zeros" in result.stderr
    assert (
        "warning: parameter model.embed_tokens.weight: 2 of 517 rows are zeros, the first 7" in result.stderr
    )
    assert Manifest.read(tmp_path / "out").extra["zeros"] == {
        "model.embed_tokens.weight": {"rows": 517, "zero_rows": 2, "first": 7},
        UP: {"rows": 96, "zero_rows": 96, "first": 0},
    }
    clean = hf_to_megatron.convert(good, tmp_path / "clean")
    assert (clean.extra["zeros"], clean.extra["warnings"]) == ({}, [])
