"""`emma convert inspect` on every format, as people and scripts read it."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from emma.tools.inspection import objects
from emma.tools.inspection.archives import open_archive
from emma.tools.inspection.trees import PickleError, printable
from tests.checkpoints_conversion.tiny_models import save_llama, save_tokenizer
from tests.command_line import Answer, emma
from tests.hostile import FOLDERS, Call, archive, poison_block


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded Hugging Face model with a tokenizer."""
    folder = save_llama(tmp_path_factory.mktemp("model") / "hf", shard="100KB")
    save_tokenizer(folder)
    return folder


@pytest.fixture
def checkpoint(model: Path, tmp_path: Path) -> Path:
    """Its import, for tests to change."""
    from emma.checkpoints_conversion.hf_to_megatron import convert

    convert(model, tmp_path / "megatron")
    return tmp_path / "megatron"


def inspect(*arguments: object) -> Answer:
    return emma("convert", "inspect", *map(str, arguments))


def parameters(model: Path) -> int:
    from transformers import AutoModelForCausalLM

    return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(model).parameters())


def test_a_model_and_its_import(model: Path, checkpoint: Path) -> None:
    answer = inspect(model, "--json")
    found = json.loads(answer.out)
    assert answer.code == 0 and answer.err == "", answer.err
    assert found["format"] == "huggingface" and found["parameters"] == parameters(model)
    assert found["pickles"] == found["missing"] == found["custom_code"] == []
    assert found["facts"]["model_type"] == "llama" and "tokenizer.json" in found["facts"]["tokenizer"]
    norm = next(tensor for tensor in found["tensors"] if tensor["name"] == "model.norm.weight")
    assert norm["dtype"] == "float32" and norm["sizes"] == [64] and norm["in"].endswith(".safetensors")

    answer = inspect(checkpoint, "--json")
    found = json.loads(answer.out)
    assert answer.code == 0, answer.err
    assert (found["format"], found["step"], found["inert"]) == ("torch_dist", 0, True)
    padding = 2 * (640 - 517) * 64
    assert found["parameters"] == parameters(model) + padding
    assert all(entry["inert"] for entry in found["names"].values())
    assert found["names"]["torch.distributed.checkpoint.metadata.Metadata"]["times"] == 1
    text = inspect(checkpoint / "iter_0000000", "--tensors").out
    assert "decoder.final_layernorm.weight float32 [64]" in text and "REFUSED" not in text


def test_ranks_files_and_pytorch_model(tmp_path: Path) -> None:
    rank = tmp_path / "iter_0000003" / "mp_rank_00"
    rank.mkdir(parents=True)
    state = {
        "iteration": 3,
        "args": Namespace(num_layers=2, hidden_size=8, consumed_train_samples=24),
        "model": {"decoder.final_layernorm.weight": torch.ones(8, dtype=torch.bfloat16)},
    }
    torch.save(state, rank / "model_optim_rng.pt")
    found = json.loads(inspect(tmp_path, "--json").out)
    assert (found["format"], found["step"], found["parameters"]) == ("torch", 3, 8)
    assert found["facts"]["layers"] == 2 and found["facts"]["samples"] == 24
    assert found["tensors"][0]["in"] == "mp_rank_00 model"

    folder = tmp_path / "bin"
    folder.mkdir()
    torch.save({"lm_head.weight": torch.zeros(4, 2)}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    answer = inspect(folder, "--json")
    assert answer.code == 0 and json.loads(answer.out)["tensors"][0]["sizes"] == [4, 2]
    (folder / "pytorch_model.bin").write_bytes(archive(Call(os.mkdir, str(tmp_path / "attacked"))))
    answer = inspect(folder)
    assert answer.code == 1 and "REFUSED  pytorch_model.bin: it refers to" in answer.out
    assert "FOREIGN" in answer.out and not (tmp_path / "attacked").exists()


def test_what_is_missing(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    folder = checkpoint / "iter_0000000"
    unfinished = Path(shutil.copytree(folder, checkpoint / "iter_0000010"))
    (unfinished / "complete.json").unlink()
    assert "MISSING  complete.json: the save did not finish" in inspect(checkpoint).out
    shutil.rmtree(unfinished)
    assert inspect(checkpoint).code == 0
    file = folder / "__0_0.distcp"
    os.truncate(file, file.stat().st_size // 2)
    (folder / "metadata.json").unlink()
    answer = inspect(checkpoint)
    assert answer.code == 1 and "it is cut off" in answer.out and "MISSING  metadata.json" in answer.out
    file.unlink()
    assert "MISSING  __0_0.distcp, with" in inspect(checkpoint).out
    (folder / ".metadata").unlink()
    assert "MISSING" in inspect(folder).out or inspect(folder).code == 2
    assert "no step 7; there are 0" in inspect(checkpoint, "--step", "7").err
    (tmp_path / "empty").mkdir()
    assert "neither checkpoints" in inspect(tmp_path / "empty").err
    assert "no such folder" in inspect(tmp_path / "absent").err


def test_a_block_that_is_not_what_the_metadata_says(checkpoint: Path) -> None:
    folder = checkpoint / "iter_0000000"
    poison_block(folder, "decoder.final_layernorm.weight", archive(torch.zeros(64, dtype=torch.bfloat16)))
    answer = inspect(checkpoint)
    assert answer.code == 1
    assert (
        "final_layernorm.weight: its type bfloat16 and sizes [64] are not those of the metadata" in answer.out
    )


def test_it_needs_no_torch(checkpoint: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from emma.tools.inspection.folders import inspect_folder\n"
        f"assert not inspect_folder(Path({str(checkpoint)!r})).refused\n"
        "assert not {'torch', 'numpy', 'megatron', 'transformers'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True)


def test_names_and_keys_cannot_write_to_the_terminal(checkpoint: Path, tmp_path: Path) -> None:
    folder = checkpoint / "iter_0000000"
    poison_block(folder, "evil\x1b[2J\nerror: all is well", archive(pickled=b"\x80\x02cos\nmkdir\n)R."))
    answer = inspect(checkpoint)
    assert answer.code == 1 and "\x1b" not in answer.out and "\nerror: all" not in answer.out
    assert "evil\\x1b[2J\\nerror" in answer.out
    assert printable("a\u202eb\x9b") == "a\\u202eb\\x9b"
    with pytest.raises(PickleError, match="a name that is none"):
        objects.read_metadata(b"\x80\x04X\x02\x00\x00\x00osX\x06\x00\x00\x00a\x1b[2Jb\x93.")


@pytest.mark.parametrize(
    ("sizes", "strides", "offset"),
    [((3,), (1,), 2), ((2, 2), (4, 1), 0), ((10**12,), (0,), 0), ((2,), (-1,), 1), ((2**63,), (1,), 0)],
)
def test_a_tensor_reaches_no_further_than_its_bytes(
    sizes: tuple[int, ...], strides: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    class Lies(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if value == "BYTES" else None

    stream = io.BytesIO()
    arguments = ("BYTES", offset, sizes, strides, False, None)
    Lies(stream, 2).dump(Call(torch._utils._rebuild_tensor_v2, *arguments))
    path = tmp_path / "lie.pt"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", stream.getvalue())
        made.writestr("archive/data/0", b"\0" * 16)
    with pytest.raises(PickleError, match="a tensor"):
        objects.load(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("compressed", "compressed or encrypted"),
        ("twice", "two entries of one name"),
        ("no pickle", "its archive is damaged"),
        ("big-endian", "not little-endian"),
        ("a script", "TorchScript"),
        ("cut", "archive"),
        ("short", "missing or too few"),
    ],
)
def test_archives_that_torch_does_not_write(name: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(torch.ones(4), path)
    with zipfile.ZipFile(path) as before:
        entries = {entry.filename: before.read(entry) for entry in before.infolist()}
    root = next(iter(entries)).partition("/")[0]
    if name == "no pickle":
        del entries[f"{root}/data.pkl"]
    if name == "big-endian":
        entries[f"{root}/byteorder"] = b"big"
    if name == "a script":
        entries[f"{root}/constants.pkl"] = b"\x80\x02N."
    if name == "short":
        entries[f"{root}/data/0"] = b"\0" * 4
    method = zipfile.ZIP_DEFLATED if name == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as made:
        for entry, data in entries.items():
            made.writestr(entry, data)
        if name == "twice":
            with pytest.warns(UserWarning, match="Duplicate name"):
                made.writestr(f"{root}/data.pkl", b"\x80\x02N.")
    if name == "cut":
        os.truncate(path, path.stat().st_size - 40)
    with pytest.raises(PickleError, match=message):
        objects.load(path)
    if name != "short":
        with pytest.raises(PickleError, match=message), open_archive(path):
            pass


def test_archives_changed_at_random_are_read_or_refused(tmp_path: Path) -> None:
    chooser, outcomes = random.Random(2), set()
    value = {"a": torch.arange(6.0), "b": [torch.ones(2, 2).t(), torch.nn.Parameter(torch.ones(3))]}
    older = io.BytesIO()
    torch.save(value, older, _use_new_zipfile_serialization=False)
    for seed in (archive(value), older.getvalue()):
        for _ in range(300):
            data = bytearray(seed)
            for _ in range(chooser.randint(1, 3)):
                data[chooser.randrange(len(data))] = chooser.randrange(256)
            try:
                objects.load(io.BytesIO(data))
                outcomes.add("read")
            except PickleError:
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_the_table_of_hostile_folders_is_long_enough() -> None:
    assert len(FOLDERS) >= 10


def test_entries_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """A hundred entries of a central directory that name one entry's bytes: ten times as many as the file has."""
    path = tmp_path / "shared.pt"
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("a/data.pkl", pickle.dumps({}, 2))
        stream.writestr("a/data/0", bytes(4096))
        for number in range(1, 100):
            entry = copy.copy(stream.getinfo("a/data/0"))
            entry.filename = f"a/data/{number}"
            stream.filelist.append(entry)
    assert path.stat().st_size < 20_000
    with pytest.raises(PickleError, match="promises more bytes than it has"), open_archive(path):
        pass
