"""Wrong and damaged input: one clear message each, and nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from tests.checkpoints_conversion.tiny_models import read_tensors, save_llama


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model in `hf/` and its import in `megatron/`."""
    folder = tmp_path_factory.mktemp("good")
    save_llama(folder / "hf", shard="100KB")
    hf_to_megatron.convert(folder / "hf", folder / "megatron")
    return folder


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    """A copy for tests to corrupt."""
    shutil.copytree(good, tmp_path / "broken")
    return tmp_path / "broken"


def _import_fails(source: Path, message: str) -> None:
    destination = source.parent / "result"
    with pytest.raises(UserError, match=message):
        hf_to_megatron.convert(source, destination)
    assert [path for path in source.parent.iterdir() if "result" in path.name] == []


def _export_fails(source: Path, message: str, step: int | None = None) -> None:
    destination = source.parent / "result"
    with pytest.raises(UserError, match=message):
        megatron_to_hf.convert(source, destination, step=step)
    assert [path for path in source.parent.iterdir() if "result" in path.name] == []


def test_truncated_safetensors(broken: Path) -> None:
    path = sorted((broken / "hf").glob("*.safetensors"))[1]
    os.truncate(path, path.stat().st_size - 100)
    _import_fails(
        broken / "hf", rf"{path.name}: \d+ bytes, but tensor .* ends at byte \d+; the file is truncated"
    )


def test_truncated_header(broken: Path) -> None:
    path = sorted((broken / "hf").glob("*.safetensors"))[0]
    os.truncate(path, 50)
    _import_fails(broken / "hf", f"{path.name}: truncated inside its header")


def test_empty_shard(broken: Path) -> None:
    path = sorted((broken / "hf").glob("*.safetensors"))[0]
    path.write_bytes(b"")
    _import_fails(broken / "hf", f"{path.name}: the file is empty")


def test_missing_shard(broken: Path) -> None:
    path = sorted((broken / "hf").glob("*.safetensors"))[1]
    path.unlink()
    _import_fails(broken / "hf", rf"index\.json: names \d+ files, of which 1 are missing \({path.name}\)")


def test_index_of_another_model(broken: Path) -> None:
    path = broken / "hf" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00006.safetensors"
    index["weight_map"]["model.norm.weight"] = sorted(set(index["weight_map"].values()))[0]
    path.write_text(json.dumps(index))
    _import_fails(
        broken / "hf", r"tensor model\.norm\.weight is in .*, but according to the index in model-00001"
    )


def _rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    from safetensors.torch import save_file

    tensors = read_tensors(folder)
    change(tensors)
    for path in folder.glob("model*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_missing_parameter(broken: Path) -> None:
    def remove(tensors: dict) -> None:
        del tensors["lm_head.weight"]

    _rewrite(broken / "hf", remove)
    _import_fails(broken / "hf", r"parameter lm_head\.weight is missing.*tie_word_embeddings")


def test_parameter_of_another_size(broken: Path) -> None:
    def cut(tensors: dict) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:32].clone()

    _rewrite(broken / "hf", cut)
    _import_fails(broken / "hf", r"model\.norm\.weight has sizes \[32\], but config\.json implies \[64\]")


def test_parameter_that_would_be_lost(broken: Path) -> None:
    def add(tensors: dict) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = tensors["model.norm.weight"].clone()

    _rewrite(broken / "hf", add)
    _import_fails(broken / "hf", r"q_proj\.bias does not belong to architecture llama")


def test_old_rotary_buffers_are_not_parameters(broken: Path) -> None:
    def add(tensors: dict) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"][:4].clone()

    _rewrite(broken / "hf", add)
    hf_to_megatron.convert(broken / "hf", broken / "result")


def test_quantised_weights(broken: Path) -> None:
    import torch

    def quantise(tensors: dict) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)

    _rewrite(broken / "hf", quantise)
    _import_fails(broken / "hf", r"tensor model\.norm\.weight has the type 'I8'")


def test_tied_model_with_two_matrices(broken: Path) -> None:
    config = broken / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    _import_fails(broken / "hf", r"lm_head\.weight differs from\s+model\.embed_tokens\.weight")


def test_pickled_weights(tmp_path: Path, good: Path) -> None:
    (tmp_path / "hf").mkdir()
    shutil.copy(good / "hf" / "config.json", tmp_path / "hf")
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"x")
    _import_fails(tmp_path / "hf", "pytorch_model.bin files, which can run code")


def test_no_model_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _import_fails(tmp_path / "empty", r"config\.json: no such file")
    _export_fails(tmp_path / "empty", "no complete checkpoint")
    _export_fails(tmp_path / "absent", "no such folder")


def test_destination_that_exists(broken: Path) -> None:
    with pytest.raises(UserError, match="--overwrite"):
        hf_to_megatron.convert(broken / "hf", broken / "megatron")
    hf_to_megatron.convert(broken / "hf", broken / "megatron", overwrite=True)


def test_no_space(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"are to be written, but 1 kB are free"):
        hf_to_megatron.convert(good / "hf", tmp_path / "result")


def test_checkpoint_without_metadata(broken: Path) -> None:
    folder = broken / "megatron" / "iter_0000000"
    (folder / ".metadata").unlink()
    _export_fails(broken / "megatron", r"step 0: \.metadata is missing")
    # An empty completion mark is still a mark; the reader checks anyway.
    (folder / "complete.json").write_text('{"files": {}}')
    _export_fails(
        broken / "megatron", r"\.metadata or metadata\.json is missing, so it is not a complete torch_dist"
    )


def test_incomplete_step(broken: Path) -> None:
    (broken / "megatron" / "iter_0000000").rename(broken / "megatron" / "iter_0000010")
    shutil.copytree(broken / "megatron" / "iter_0000010", broken / "megatron" / "iter_0000020")
    (broken / "megatron" / "iter_0000020" / "complete.json").unlink()
    _export_fails(broken / "megatron", r"step 20 of .* cannot be used: complete\.json is missing", step=20)
    _export_fails(broken / "megatron", r"step 30 of .* it does not exist; complete steps: 10", step=30)
    manifest = megatron_to_hf.convert(broken / "megatron", broken / "result")
    assert manifest.extra["steps"] == [10]  # the latest complete one


def test_truncated_distcp(broken: Path) -> None:
    path = broken / "megatron" / "iter_0000000" / "__0_0.distcp"
    os.truncate(path, path.stat().st_size // 2)
    _export_fails(broken / "megatron", r"__0_0\.distcp has \d+ bytes, but \d+ were written")
    (path.parent / "complete.json").write_text('{"files": {}}')
    _export_fails(
        broken / "megatron", r"__0_0\.distcp: \d+ bytes, but the metadata refers to byte \d+.*truncated"
    )


def test_checkpoint_of_another_shape(broken: Path) -> None:
    path = broken / "megatron" / "iter_0000000" / "model.yaml"
    path.write_text(path.read_text().replace("query_groups: 2", "query_groups: 4"))
    (path.parent / "complete.json").write_text('{"files": {}}')
    _export_fails(
        broken / "megatron", r"linear_qkv\.weight has sizes \[3, 96, 64\], .*implies \[3, 128, 64\]"
    )


def test_checkpoint_without_description(broken: Path) -> None:
    (broken / "megatron" / "iter_0000000" / "model.yaml").unlink()
    (broken / "megatron" / "iter_0000000" / "complete.json").write_text('{"files": {}}')
    _export_fails(broken / "megatron", r"neither model\.yaml in it nor .*recipe\.yaml")


def test_no_optimizer_state(good: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no optimizer state"):
        megatron_to_hf.convert(good / "megatron", tmp_path / "result", weights="optimizer")


def test_metadata_that_would_run_code(broken: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return os.system, ("touch attacked",)

    path = broken / "megatron" / "iter_0000000" / ".metadata"
    path.write_bytes(pickle.dumps(Attack()))
    (path.parent / "complete.json").write_text('{"files": {}}')
    _export_fails(
        broken / "megatron", r"refused: it refers to (posix|os)\.system.*Nothing of it was executed"
    )


def test_killed_conversion_leaves_nothing(good: Path, tmp_path: Path) -> None:
    """SIGTERM midway: the process cleans up before it exits."""
    script = f"""
import os, signal
from pathlib import Path
from emma.checkpoints_conversion import hf_to_megatron
def stop(*args):
    os.kill(os.getpid(), signal.SIGTERM)
hf_to_megatron.write_companions = stop
hf_to_megatron.convert(Path({str(good / "hf")!r}), Path({str(tmp_path / "result")!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr
    assert list(tmp_path.iterdir()) == []
