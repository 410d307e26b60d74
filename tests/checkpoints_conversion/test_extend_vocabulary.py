"""Surgery on the embeddings: old rows and other tensors bit for bit, new rows as the initialiser says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.base.manifest import FileRecord, Manifest
from emma.checkpoints_conversion.extend_vocabulary import extend_vocabulary, plan
from emma.recipes.schema.tokenizer import Extension
from emma.recipes.vocabulary import growth_of
from emma.tools.tokenizer.bpe import open_tokenizer
from emma.tools.tokenizer.extend import EXTENSION, extend, read_extension
from tests.checkpoints_conversion.tiny_models import read_tensors, save_llama
from tests.tiny_text import SENTENCES
from tests.tokenizer_styles import write_style
from tests.tools.tokenizer.tiny_corpus import write_corpus

_MATRICES = {"model.embed_tokens.weight", "lm_head.weight"}
_TOKENS = 200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = {language: list(lines) * 5 for language, lines in SENTENCES.items()}
    return write_corpus(tmp_path_factory.mktemp("corpus"), train)


@pytest.fixture(scope="module")
def tokenizers(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    base = write_style(folder / "base", "llama3")
    write_json(
        base / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>",
        },
    )
    extend(open_tokenizer(base), corpus, folder / "out", Extension(tokens=_TOKENS, min_count=2))
    return base, folder / "out"


def _model(folder: Path, tokenizer: Path, **changes: object) -> Path:
    ids = open_tokenizer(tokenizer).ids
    settings = {
        "vocab_size": max(ids.values()) + 1,
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": ids["<|end_of_text|>"],
    }
    save_llama(folder, **(settings | changes))
    for path in tokenizer.iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_old_rows_and_other_tensors_keep_their_bits(
    tokenizers: tuple[Path, Path], tmp_path: Path, tied: bool, dtype: str
) -> None:
    base = _model(tmp_path / "base", tokenizers[0], dtype=dtype, tie_word_embeddings=tied)
    extend_vocabulary(base, tmp_path / "out", tokenizers[1], shard_bytes=100_000)
    before, after = read_tensors(base), read_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    rows = read_extension(tokenizers[1]).rows
    first = rows[0]["id"]
    for name, tensor in before.items():
        found = after[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found[: len(tensor)], tensor)
        assert len(found) == (len(tensor) + len(rows) if name in _MATRICES else len(tensor))
        if name in _MATRICES:
            for row in (rows[0], rows[57], rows[-1]):
                expected = tensor[row["pieces"]].float().mean(0).to(tensor.dtype)
                assert torch.equal(found[row["id"]], expected)
    assert first == len(before["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == first + len(rows)


def test_old_text_has_the_logits_that_it_had(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = _model(tmp_path / "base", tokenizers[0])
    extend_vocabulary(base, tmp_path / "out", tokenizers[1])
    ids = AutoTokenizer.from_pretrained(base)(SENTENCES["rus_Cyrl"][0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        one, other = (
            AutoModelForCausalLM.from_pretrained(each)(ids).logits for each in (base, tmp_path / "out")
        )
    assert torch.allclose(other[..., : one.shape[-1]], one, atol=1e-6)
    text = "\n".join(line for lines in SENTENCES.values() for line in lines)
    old, new = (AutoTokenizer.from_pretrained(each)(text)["input_ids"] for each in (base, tmp_path / "out"))
    assert len(new) < len(old)


def test_controls_have_their_statistics(tokenizers: tuple[Path, Path], corpus: Path, tmp_path: Path) -> None:
    base = _model(tmp_path / "base", tokenizers[0])
    old = read_tensors(base)["lm_head.weight"]
    for initialise in ("mean", "random", "auxiliary"):
        manifest = extend_vocabulary(
            base, tmp_path / initialise, tokenizers[1], initialise=initialise, corpus=corpus
        )
        new = read_tensors(tmp_path / initialise)["lm_head.weight"][len(old) :]
        assert len(new) == _TOKENS and bool(torch.isfinite(new).all())
        if initialise == "mean":
            assert float((new - old.mean(0)).std()) == pytest.approx(1e-3, rel=0.1)
        elif initialise == "random":
            assert float(new.std()) == pytest.approx(float(old.std()), rel=0.05)
        else:
            assert manifest.extra["from_similar_tokens"] > _TOKENS // 2
            # Weighted means of old rows: none is larger than the largest of these.
            assert float(new.norm(dim=1).max()) <= float(old.norm(dim=1).max()) * 1.001


def test_padding_behind_the_last_token_is_replaced(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    size = max(open_tokenizer(tokenizers[0]).ids.values()) + 1
    base = _model(tmp_path / "base", tokenizers[0], vocab_size=size + 50)
    manifest = extend_vocabulary(base, tmp_path / "out", tokenizers[1])
    assert manifest.extra["replaced_rows"] == 50
    assert manifest.extra["vocab_size"] == {"before": size + 50, "after": size + _TOKENS}
    small = _model(tmp_path / "small", tokenizers[0], vocab_size=size + _TOKENS + 7)
    manifest = extend_vocabulary(small, tmp_path / "out-small", tokenizers[1])
    before, after = read_tensors(small), read_tensors(tmp_path / "out-small")
    assert torch.equal(after["lm_head.weight"][-7:], before["lm_head.weight"][-7:])


def test_what_does_not_belong_together_is_refused(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    base, out = (
        _model(tmp_path / "base", tokenizers[0]),
        Path(shutil.copytree(tokenizers[1], tmp_path / "tokenizer")),
    )
    table = pq.read_table(out / EXTENSION)
    pieces = table["pieces"].to_pylist()
    field = table.schema.field("pieces")
    shifted = pa.array([pieces[-1], *pieces[:-1]], field.type)
    pq.write_table(table.set_column(table.schema.get_field_index("pieces"), field, shifted), out / EXTENSION)
    manifest = Manifest.read(out)
    manifest.outputs = [FileRecord.of(out / record.path, out) for record in manifest.outputs]
    manifest.write(out)
    with pytest.raises(UserError, match="but the base spells it"):
        plan(base, out)
    with pytest.raises(UserError, match="from different models"):
        plan(_model(tmp_path / "short", tokenizers[0], vocab_size=200), tokenizers[1])
    other = _model(tmp_path / "other", tokenizers[0])
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    with pytest.raises(UserError, match="extend this model's own tokenizer"):
        plan(other, tokenizers[1])
    (other / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no such file"):
        extend_vocabulary(other, tmp_path / "none", tokenizers[1])
    assert not (tmp_path / "none").exists()


def _retable(source: Path, out: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """A copy of an extension with another table, checksums included."""
    shutil.copytree(source, out)
    pq.write_table(change(pq.read_table(out / EXTENSION)), out / EXTENSION)
    manifest = Manifest.read(out)
    manifest.outputs = [FileRecord.of(out / record.path, out) for record in manifest.outputs]
    manifest.write(out)
    return out


def test_a_table_that_is_not_the_tokenizers_is_refused(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """Each row by itself is right: only its place is not, and one that lacks would take padding's place."""
    size = max(open_tokenizer(tokenizers[0]).ids.values()) + 1
    base = _model(tmp_path / "base", tokenizers[0], vocab_size=size + _TOKENS + 8)

    def rotated(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table.slice(1), table.slice(0, 1)])

    with pytest.raises(UserError, match="row 0 of extension"):
        plan(base, _retable(tokenizers[1], tmp_path / "rotated", rotated))

    def renumbered(table: pa.Table) -> pa.Table:
        turned = rotated(table)
        return turned.set_column(0, table.schema.field("id"), table["id"])

    with pytest.raises(UserError, match="row 0 of extension"):
        plan(base, _retable(tokenizers[1], tmp_path / "renumbered", renumbered))
    with pytest.raises(UserError, match="it would have"):
        plan(base, _retable(tokenizers[1], tmp_path / "short", lambda table: table.slice(0, len(table) - 1)))

    def other_pieces(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("pieces")
        return table.set_column(place, table.schema.field("pieces"), rotated(table)["pieces"])

    with pytest.raises(UserError, match="but the base spells it"):
        plan(base, _retable(tokenizers[1], tmp_path / "pieces", other_pieces))


def test_what_grew_travels_with_the_model(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    from emma.checkpoints_conversion.hf_to_megatron import convert

    base = _model(tmp_path / "base", tokenizers[0])
    extend_vocabulary(base, tmp_path / "out", tokenizers[1], initialise="mean")
    convert(tmp_path / "out", tmp_path / "megatron")
    growth = growth_of(tmp_path / "megatron/iter_0000000/tokenizer")
    assert growth is not None
    assert (growth.tokens, growth.initialise) == (_TOKENS, "mean")
    assert growth_of(base) is None
