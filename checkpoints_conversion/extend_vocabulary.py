"""Rows for new tokens: a Hugging Face model and an extended tokenizer become a model with that vocabulary, streamed."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from emma.base.errors import UserError
from emma.base.files import sha256_file, write_json
from emma.base.manifest import FileRecord, Manifest
from emma.base.progress import progress
from emma.base.staging import check_free_space, staged_folder
from emma.checkpoints_conversion.config import read_settings, token_ids_from_hf
from emma.checkpoints_conversion.dtypes import dtype_name
from emma.checkpoints_conversion.huggingface_weights import HuggingFaceWeights
from emma.checkpoints_conversion.parameters import EMBEDDING, OUTPUT, name_of, parameter_shapes
from emma.checkpoints_conversion.safetensors_files import OutgoingTensor, write_shards
from emma.checkpoints_conversion.slicing import row_blocks
from emma.checkpoints_conversion.tokenizer_files import check_tokenizer, copy_tokenizer
from emma.recipes.vocabulary import Growth, growth_of
from emma.tools.tokenizer.bpe import Bpe, open_tokenizer
from emma.tools.tokenizer.extend import Extended, read_extension
from emma.tools.tokenizer.vectors import Combination, auxiliary

__all__ = ["INITIALISERS", "Initialiser", "extend_vocabulary", "plan"]

Initialiser = Literal["subword", "mean", "auxiliary", "random"]
INITIALISERS: tuple[Initialiser, ...] = ("subword", "mean", "auxiliary", "random")

STAGE = "convert.extend-vocabulary"
_ROWS = 1024
_GATHERED = 2048
"""Old rows in memory at once, in FP32."""
_NOISE = 1e-3
"""Deviation of what is added to the mean, so that rows differ."""


@dataclass(frozen=True)
class _Surgery:
    """What is to be done, all checked."""

    weights: HuggingFaceWeights
    extended: Extended
    initialise: Initialiser
    seed: int

    @property
    def matrices(self) -> list[str]:
        """Names of the embeddings: input and output, or the one that is both."""
        shape = self.weights.shape
        return list(dict.fromkeys((name_of(shape, EMBEDDING), name_of(shape, OUTPUT))))

    @property
    def size(self) -> int:
        """Rows of the new matrices."""
        return max(self.weights.shape.vocab_size, self.extended.first + len(self.extended.rows))

    @property
    def replaced(self) -> int:
        """Rows of the base behind its last token, which no text reaches and new tokens take."""
        return min(self.weights.shape.vocab_size - self.extended.first, len(self.extended.rows))


def _opened(base: Path, tokenizer: Path, initialise: Initialiser, seed: int) -> _Surgery:
    """Reads both folders and refuses what doesn't belong together."""
    extended = read_extension(tokenizer)
    weights = HuggingFaceWeights(base)
    path = base / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; the model's own tokenizer shows that {tokenizer} extends it: copy it too"
        )
    expected = extended.manifest.extra["base"]["sha256"]
    if (found := sha256_file(path)) != expected:
        raise UserError(
            f"{path}: its SHA-256 is {found}, but {tokenizer} extends {expected}; extend this model's own tokenizer"
        )
    rows = weights.shape.vocab_size
    if rows < extended.first:
        raise UserError(
            f"{base}: its embedding has {rows} rows, but its tokenizer has {extended.first} ids; weights and tokenizer are "
            "from different models"
        )
    ids = extended.file.ids
    for place, row in enumerate(extended.rows, start=extended.first):
        # Rows are written in the table's order.
        if row["id"] != place or ids.get(row["token"]) != place:
            raise UserError(
                f"{tokenizer}: row {place - extended.first} of extension.parquet is the token {row['id']} "
                f"({row['token']!r}), but must be {place}, and tokenizer.json has it at {ids.get(row['token'])}; make the "
                "extension again"
            )
    if (size := max(ids.values()) + 1) != extended.first + len(extended.rows):
        raise UserError(
            f"{tokenizer}: tokenizer.json has {size} ids, but with the {len(extended.rows)} rows of extension.parquet it "
            f"would have {extended.first + len(extended.rows)}; make the extension again"
        )
    old = Bpe.read(open_tokenizer(base))
    pieces = old.encode_words([row["token"] for row in extended.rows])
    for row, own in zip(extended.rows, pieces, strict=True):
        if row["pieces"] != own:
            raise UserError(
                f"{tokenizer}: extension.parquet gives the token {row['id']} ({row['token']!r}) the pieces {row['pieces']}, "
                f"but the base spells it {own}; make the extension again"
            )
    token_ids_from_hf(base, rows)
    surgery = _Surgery(weights, extended, initialise, seed)
    check_tokenizer(tokenizer, surgery.size)
    return surgery


def plan(base: Path, tokenizer: Path, initialise: Initialiser = "subword") -> dict[str, Any]:
    """What `extend_vocabulary` would do, after all checks that read no weights.

    Returns:
        `vocab_size` before and after, `new_rows`, `replaced_rows`, `tied`, `bytes` to write, `initialise`.
    """
    surgery = _opened(base, tokenizer, initialise, 0)
    return {
        "vocab_size": {"before": surgery.weights.shape.vocab_size, "after": surgery.size},
        "new_rows": len(surgery.extended.rows),
        "replaced_rows": surgery.replaced,
        "tied": surgery.weights.shape.tie_embeddings,
        "bytes": sum(tensor.size for tensor in _tensors(surgery, {})),
        "initialise": initialise,
    }


def extend_vocabulary(
    base: Path,
    destination: Path,
    tokenizer: Path,
    *,
    initialise: Initialiser = "subword",
    corpus: Path | None = None,
    seed: int = 1234,
    shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    threads: int = 2,
) -> Manifest:
    """Writes a model whose embeddings have rows for an extended tokenizer; all else is copied byte for byte.

    Args:
        base: Hugging Face folder of the model, with its tokenizer.
        destination: Hugging Face folder to write.
        tokenizer: what `emma tokenizer extend` wrote.
        initialise: `subword`: the mean of the rows of a token's pieces; `mean`: of all rows, with a little noise;
            `auxiliary`: rows of similar old tokens, see `tools/tokenizer/vectors.py`; `random`: normal, with the
            deviation of the matrix.
        corpus: whose training documents `auxiliary` learns from; by default the extension's.
        seed: of `mean` and `random`.
        shard_bytes: most bytes of tensors in a file.
        overwrite: replace `destination`.
        threads: files written at once.

    Returns:
        The manifest, as written.

    Raises:
        UserError: model, tokenizer and extension are not of each other; too little disk space; `destination` exists.
            Leaves nothing behind.
    """
    surgery = _opened(base, tokenizer, initialise, seed)
    check_free_space(destination, math.ceil(1.01 * sum(tensor.size for tensor in _tensors(surgery, {}))))
    extra = surgery.extended.manifest.extra
    manifest = Manifest(STAGE, "")
    with staged_folder(destination, overwrite=overwrite) as staging:
        combinations: list[Combination] = []
        if initialise == "auxiliary":
            combinations = auxiliary(surgery.extended, corpus or Path(extra["corpus"]["path"]))
        rows = {name: _new_rows(surgery, name, combinations) for name in surgery.matrices}
        tensors = _tensors(surgery, rows)
        bar: Any
        total = sum(tensor.size for tensor in tensors)
        with progress(total=total, desc="extend", unit="B", unit_scale=True) as bar:
            manifest.outputs = write_shards(
                staging, tensors, shard_bytes, threads=threads, advance=bar.update
            )
        _write_companions(surgery, staging)
        written = {record.path for record in manifest.outputs}
        manifest.outputs += [
            FileRecord.of(path, staging) for path in sorted(staging.iterdir()) if path.name not in written
        ]
        small = [base / "config.json", base / "tokenizer.json", tokenizer / "tokenizer.json"]
        # Of the weights, their names and sizes: reading them once more for a checksum would take as long as the copy.
        manifest.inputs = [FileRecord.of(path) for path in small] + [
            FileRecord(str(path), path.stat().st_size, "") for path in surgery.weights.files
        ]
        manifest.counts = {"in": surgery.weights.shape.vocab_size, "kept": surgery.size, "removed_by": {}}
        manifest.extra = {
            "initialise": initialise,
            "seed": seed,
            "vocab_size": {"before": surgery.weights.shape.vocab_size, "after": surgery.size},
            "new_rows": len(surgery.extended.rows),
            "replaced_rows": surgery.replaced,
            "tied": surgery.weights.shape.tie_embeddings,
            "from_similar_tokens": sum(each is not None for each in combinations) if combinations else None,
            "dtype": dtype_name(surgery.weights.dtype(surgery.matrices[0])),
        }
        manifest.write(staging)
    return manifest


def _write_companions(surgery: _Surgery, staging: Path) -> None:
    base = surgery.weights.folder
    write_json(staging / "config.json", {**read_settings(base / "config.json"), "vocab_size": surgery.size})
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", staging / "generation_config.json")
    copy_tokenizer(surgery.extended.folder, staging)
    growth = growth_of(surgery.extended.folder)
    extra = surgery.extended.manifest.extra
    grown = growth or Growth(extra["base"]["sha256"], surgery.extended.first, len(surgery.extended.rows))
    replace(grown, initialise=surgery.initialise).write(staging)


def _tensors(surgery: _Surgery, new: dict[str, Callable[[], Iterator[torch.Tensor]]]) -> list[OutgoingTensor]:
    """All tensors of the model, in network order."""
    weights = surgery.weights
    result = []
    for name, sizes in parameter_shapes(weights.shape).items():
        grown = (surgery.size, *sizes[1:]) if name in surgery.matrices else sizes
        stream = functools.partial(_stream, surgery, name, sizes, new.get(name))
        result.append(OutgoingTensor(name, weights.dtype(name), grown, stream))
    return result


def _stream(
    surgery: _Surgery, name: str, sizes: tuple[int, ...], new: Callable[[], Iterator[torch.Tensor]] | None
) -> Iterator[torch.Tensor]:
    """A tensor in blocks, as stored; of an embedding the tokens' rows, then the new ones, then what is left."""
    if name not in surgery.matrices or new is None:
        yield from _old_rows(surgery, name, 0, sizes[0])
        return
    first, count = surgery.extended.first, len(surgery.extended.rows)
    yield from _old_rows(surgery, name, 0, first)
    yield from new()
    yield from _old_rows(surgery, name, first + count, sizes[0])


def _old_rows(surgery: _Surgery, name: str, first: int, stop: int) -> Iterator[torch.Tensor]:
    sizes = parameter_shapes(surgery.weights.shape)[name]
    for start, count in row_blocks((max(0, stop - first), *sizes[1:])):
        with surgery.weights.open(name, (first + start, count)) as rows:
            yield rows


def _new_rows(
    surgery: _Surgery, name: str, combinations: list[Combination]
) -> Callable[[], Iterator[torch.Tensor]]:
    """The stream of a matrix's new rows, in the matrix's type; computed in FP32."""

    def stream() -> Iterator[torch.Tensor]:
        dtype, count = surgery.weights.dtype(name), len(surgery.extended.rows)
        generator = torch.Generator().manual_seed(surgery.seed + surgery.matrices.index(name))
        hidden = surgery.weights.shape.hidden_size
        if surgery.initialise in ("mean", "random"):
            mean, deviation = _moments(surgery, name)
        for start in range(0, count, _ROWS):
            size = min(_ROWS, count - start)
            if surgery.initialise == "mean":
                block = mean + _NOISE * torch.randn(size, hidden, generator=generator)
            elif surgery.initialise == "random":
                block = deviation * torch.randn(size, hidden, generator=generator)
            else:
                block = _combined(surgery, name, start, size, combinations)
            yield block.to(dtype).contiguous()

    return stream


def _combined(
    surgery: _Surgery, name: str, start: int, size: int, combinations: list[Combination]
) -> torch.Tensor:
    """Weighted means of old rows: a token's pieces, or the old tokens that it was found to resemble."""
    ids: list[int] = []
    weights: list[float] = []
    counts: list[int] = []
    divisors: list[int] = []
    for place in range(start, start + size):
        found = combinations[place] if combinations else None
        pieces = surgery.extended.rows[place]["pieces"]
        # Weights of similar tokens add up to 1; a mean is a sum and one division, as torch's is.
        own, shares = found or (pieces, [1.0] * len(pieces))
        ids += own
        weights += shares
        counts.append(len(own))
        divisors.append(1 if found else len(own))
    owners = torch.arange(size).repeat_interleave(torch.tensor(counts))
    block = torch.zeros(size, surgery.weights.shape.hidden_size)
    for first in range(0, len(ids), _GATHERED):
        few = slice(first, first + _GATHERED)
        with surgery.weights.open(name) as matrix:
            rows = matrix[ids[few]].float()
        block.index_add_(0, owners[few], rows.mul_(torch.tensor(weights[few])[:, None]))
    return block / torch.tensor(divisors)[:, None]


def _moments(surgery: _Surgery, name: str) -> tuple[torch.Tensor, float]:
    """Mean row of the base's tokens, and the deviation of their values from zero."""
    total = torch.zeros(surgery.weights.shape.hidden_size, dtype=torch.float64)
    squares = 0.0
    for rows in _old_rows(surgery, name, 0, surgery.extended.first):
        values = rows.float()
        total += values.sum(0, dtype=torch.float64)
        squares += float((values * values).sum(dtype=torch.float64))
    count = surgery.extended.first
    return (total / count).float(), math.sqrt(squares / (count * len(total)))
