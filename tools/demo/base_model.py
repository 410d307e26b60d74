"""Makes the demo's base model: `python -P -m emma.tools.demo.base_model CORPUS TOKENIZER OUT`.

A model of the recipe's shape, pre-trained briefly on a few high-resource languages with plain transformers and torch.
It stands in for the open base model that continual pre-training starts from: it knows some languages and not others.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.base.staging import staged_folder
from emma.checkpoints_conversion.config import TokenIds, hf_config
from emma.recipes.schema.model import Model
from emma.tools.demo.commands import run_command
from emma.tools.inspection.models import tokenizer_options

if TYPE_CHECKING:
    import numpy as np
    import torch
    from tqdm import tqdm
    from transformers import PreTrainedModel

__all__ = ["fresh_model", "pretrain", "token_blocks"]

DEFAULT_LANGUAGES = "eng_Latn,deu_Latn,fra_Latn,spa_Latn,rus_Cyrl"


def fresh_model(model: Model, begin_id: int, end_id: int, pad_id: int, seed: int) -> PreTrainedModel:
    """A `transformers` model of the recipe's architecture and shape with fresh FP32 weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    values = hf_config(model, dtype="float32", tokens=TokenIds(begin_id, (end_id,), pad_id))
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))


def token_blocks(corpus: Path, languages: list[str], tokenizer: Any, length: int) -> np.ndarray:
    """Training documents of the languages, each between begin- and end-of-text tokens, joined and cut into blocks.

    Returns:
        int64 array [blocks, length]; a last, incomplete block is dropped.

    Raises:
        UserError: the corpus lacks one of the languages or holds too little text.
    """
    import numpy as np

    from emma.tools.demo.corpus_text import languages_of, training_documents

    if missing := sorted(set(languages) - set(languages_of(corpus, "monolingual"))):
        raise UserError(f"{corpus}: no monolingual text in {', '.join(missing)}")
    ids: list[int] = []
    for language in languages:
        documents = list(training_documents(corpus, "monolingual", language))
        for document in tokenizer(documents, split_special_tokens=True, verbose=False)["input_ids"]:
            ids += [*document, tokenizer.eos_token_id]
    count = len(ids) // length
    if not count:
        raise UserError(f"{corpus}: {len(ids)} tokens do not fill a sequence of {length}")
    return np.array(ids[: count * length], dtype=np.int64).reshape(count, length)


def pretrain(
    model: PreTrainedModel, blocks: torch.Tensor, *, steps: int, batch: int, learning_rate: float, seed: int
) -> list[float]:
    """Trains with AdamW, linear warm-up over a tenth of the steps and cosine decay to a tenth of the peak.

    Args:
        model: changed in place.
        blocks: int64 [blocks, length]; reshuffled every epoch.
        steps: optimizer steps.
        batch: blocks per step.
        learning_rate: its peak.
        seed: for the order of blocks.

    Returns:
        Loss of each step, in nats per token.
    """
    import torch

    from emma.base.progress import progress

    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * batch // len(blocks))
    order = torch.cat([torch.randperm(len(blocks), generator=generator) for _ in range(epochs)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(1, steps // 10)

    def factor(step: int) -> float:
        decay = 0.55 + 0.45 * math.cos(math.pi * min(1.0, max(0, step - warmup) / max(1, steps - warmup)))
        return min(1.0, (step + 1) / warmup) * decay

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    model.train()
    bar: tqdm[int]
    with progress(range(steps), desc="base model", unit="step") as bar:
        for step in bar:
            ids = blocks[order[step * batch : (step + 1) * batch]]
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
    model.eval()
    return losses


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("tokenizer_folder", metavar="TOKENIZER", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--model", "model_name", default="tiny", show_default=True, help="Shape: a name in recipes/models."
)
@click.option("--languages", default=DEFAULT_LANGUAGES, show_default=True, help="Languages to train on.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    # Few enough that these languages too can gain from the demo's budget; after 400 steps they only got worse.
    default=150,
    show_default=True,
    help="Optimizer steps.",
)
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True, help="Sequences per step.")
@click.option(
    "--length", type=click.IntRange(min=2), default=256, show_default=True, help="Tokens per sequence."
)
@click.option("--learning-rate", type=float, default=1e-2, show_default=True, help="Peak learning rate.")
@click.option("--seed", type=int, default=1234, show_default=True)
def command(
    corpus: Path,
    tokenizer_folder: Path,
    out: Path,
    model_name: str,
    languages: str,
    steps: int,
    batch: int,
    length: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Pre-train a small model on a few languages of CORPUS and write it to OUT in Hugging Face format.

    OUT holds weights, configs, the tokenizer, and `languages.json`, which lists the languages that the model has seen.
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    from emma.recipes.load import load_section

    disable_progress_bar()  # for writing one small file

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, **tokenizer_options(tokenizer_folder))
    shape: Model = load_section("model", model_name)
    if len(tokenizer) != shape.vocab_size:
        raise UserError(
            f"{tokenizer_folder}: {len(tokenizer)} tokens, but the model {model_name} has {shape.vocab_size}; "
            f"train the tokenizer with --vocab-size {shape.vocab_size}"
        )
    seen = [language.strip() for language in languages.split(",")]
    blocks = torch.from_numpy(token_blocks(corpus, seen, tokenizer, length))
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    model = fresh_model(shape, *ids, seed=seed)
    count = sum(parameter.numel() for parameter in model.parameters())
    click.echo(f"{count:,} parameters, {blocks.numel():,} tokens in {', '.join(seen)}")
    losses = pretrain(model, blocks, steps=steps, batch=batch, learning_rate=learning_rate, seed=seed)
    model.generation_config = GenerationConfig(bos_token_id=ids[0], eos_token_id=ids[1], pad_token_id=ids[2])
    with staged_folder(out, overwrite=True) as staging:
        model.save_pretrained(staging)
        # Copied, not saved: `save_pretrained` would write a class name that older versions don't know.
        for path in sorted(tokenizer_folder.iterdir()):
            shutil.copyfile(path, staging / path.name)
        write_json(staging / "languages.json", {"seen": seen})
    last = losses[-max(1, steps // 10) :]
    click.echo(
        f"{out}: loss {losses[0]:.3f} → {sum(last) / len(last):.3f} nats per token after {steps} steps"
    )


if __name__ == "__main__":
    run_command(command)
