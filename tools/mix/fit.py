"""From a plan to documents: as many tokens as fill the samples, and not one sample more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from emma.base.errors import UserError
from emma.base.threads import in_order, threads
from emma.tools.mix.catalogue import Catalogue, Part
from emma.tools.mix.packing import best_fit, bins_needed, cut_to_samples, piece_lengths, split_bins
from emma.tools.mix.plan import MixPlan, make_plan
from emma.tools.mix.prepare import MixSettings, Prepared
from emma.tools.mix.select import Choice, Chooser, generator
from emma.tools.mix.shuffle import Shuffle, buckets_of
from emma.tools.mix.writer import SourceCounts

__all__ = ["PACKED_ROWS", "TooManyError", "choose", "expected_rows", "pack"]

PACKED_ROWS = 1 << 22
"""Approximate documents of a bucket that is packed at once. Packing takes as long for few as for many."""
_TRIES = 40


class TooManyError(Exception):
    """Packing made more samples than the mix has; `samples` is the excess."""

    def __init__(self, samples: int) -> None:
        super().__init__(f"{samples} samples too many")
        self.samples = samples


def choose(
    settings: MixSettings, prepared: Prepared, catalogues: Mapping[str, Catalogue], spare: int = 0
) -> tuple[MixPlan, Choice]:
    """The plan whose tokens fill the mix's samples, and its documents.

    Concatenated samples have no room to spare. Best-fit samples have: how much is only known once documents are
    packed, and so is the number of tokens that fit. It is searched for, so that every source gets its share of what is
    read, not of what would fit if nothing stayed empty.

    Args:
        settings: what to build.
        prepared: the plan, with as many tokens as samples could hold.
        catalogues: by component.
        spare: samples to leave free, besides.

    Raises:
        UserError: the caps keep the sources from reaching the total.
    """
    chooser = Chooser(catalogues, settings.mix.seed)
    if settings.mix.packing == "concatenate":
        # The last token of the stream is only a label.
        choice = chooser.choose(prepared.plan.sources, settings.tokens + 1)
        return prepared.plan, choice
    capacity = settings.sequence_length + 1
    buckets = buckets_of(expected_rows(prepared.plan), PACKED_ROWS)
    # Buckets differ a little from one another: what is estimated for many is not exact.
    samples = settings.samples - spare - (settings.samples // 10_000 if buckets > 1 else 0)
    slack = settings.samples // 2_000
    epochs = {row.source.key: row.epochs for row in prepared.plan.sources}
    estimate = bins_needed(_expected_pieces(catalogues, epochs, capacity), capacity, buckets)
    tokens = min(prepared.plan.tokens, max(2, int(prepared.plan.tokens * samples / max(estimate, 1))))
    most = prepared.plan.tokens + 1
    best: tuple[MixPlan, Choice] | None = None
    least = 1
    for attempt in range(_TRIES):
        plan = _with_tokens(prepared, settings, tokens)
        choice = chooser.choose(plan.sources, tokens)
        if choice.closing is not None and choice.closing.tokens == 1 and tokens > 2:
            # A sample of its own would have nothing to predict.
            choice = chooser.choose(plan.sources, tokens - 1)
        made = bins_needed(_chosen_pieces(catalogues, choice, capacity), capacity, buckets)
        if made <= samples:
            least, best = tokens, (plan, choice)
            if made >= samples - slack:
                break
        else:
            most = tokens
        if most - least <= 1:
            break
        guess = int(tokens * samples / made) if made and attempt % 3 < 2 else (least + most) // 2
        tokens = min(max(guess, least + 1), most - 1)
    if best is None:
        raise UserError(
            f"{settings.folder}: no choice of documents fills {settings.samples} samples; raise the budget"
        )
    return best


def expected_rows(plan: MixPlan) -> int:
    """About as many documents as training reads, each counted as often as it is read."""
    return round(sum(row.source.documents * row.epochs for row in plan.sources))


def _with_tokens(prepared: Prepared, settings: MixSettings, tokens: int) -> MixPlan:
    plan = make_plan(settings.mix, prepared.sources, tokens, settings.sequence_length)
    full = settings.samples * (settings.sequence_length + 1)
    note = (
        f"best_fit: {tokens:,} tokens of documents in samples that could hold {full:,}; the rest "
        f"({100 * (1 - tokens / full):.2f} %) stays empty"
    )
    return replace(plan, groups=prepared.plan.groups, notes=[*prepared.plan.notes, note])


def _expected_pieces(
    catalogues: Mapping[str, Catalogue], epochs: Mapping[tuple[str, str], float], capacity: int
) -> np.ndarray:
    found = np.zeros(capacity + 1)
    for name, catalogue in catalogues.items():
        rate = np.array([epochs.get((name, language), 0.0) for language in catalogue.languages])

        def pieces(part: Part, catalogue: Catalogue = catalogue, rate: np.ndarray = rate) -> np.ndarray:
            here = slice(part.start, part.stop)
            weights = rate[catalogue.language[here]] * catalogue.training(part)
            return piece_lengths(catalogue.tokens[here], weights, capacity)

        for each in in_order(pieces, catalogue.parts):
            found += each
    return found


def _chosen_pieces(catalogues: Mapping[str, Catalogue], choice: Choice, capacity: int) -> np.ndarray:
    found = np.zeros(capacity + 1)
    for catalogue in catalogues.values():

        def pieces(part: Part, catalogue: Catalogue = catalogue) -> np.ndarray:
            tokens = catalogue.tokens[part.start : part.stop]
            return piece_lengths(tokens, choice.times(catalogue, part), capacity)

        for each in in_order(pieces, catalogue.parts):
            found += each
    if choice.closing is not None:
        found += piece_lengths(np.array([choice.closing.tokens]), np.ones(1), capacity)
    return found


def pack(
    shuffled: Shuffle, packed: Shuffle, settings: MixSettings, itemsize: int, counts: SourceCounts
) -> None:
    """Packs documents bucket by bucket into exactly the mix's samples.

    Args:
        shuffled: documents.
        packed: gets the samples.
        settings: of the mix.
        itemsize: bytes of a token.
        counts: of what is packed.

    Raises:
        TooManyError: the buckets need more samples.
    """
    capacity = settings.sequence_length + 1

    def one(bucket: int, samples: int | None = None) -> int:
        rows, first, cut = cut_to_samples(shuffled.take(bucket)[0], capacity, itemsize)
        bins, made = best_fit(rows["tokens"].astype(np.int64), capacity)
        order = np.argsort(bins, kind="stable")
        rows, first, cuts = rows[order], first[order], int(cut.sum())
        sizes = np.bincount(bins, minlength=made)
        if samples is not None:
            if made > samples:
                raise TooManyError(made - samples)
            rng = generator(settings.mix.seed, "split")
            rows, sizes, first, more = split_bins(rows, sizes, first, samples - made, itemsize, rng)
            cuts += more
        counts.add(rows, first, cuts)
        packed.put((bucket,), rows, sizes)
        return made

    last = len(shuffled.rows) - 1
    made = sum(in_order(one, range(last), min(2, threads())))
    one(last, settings.samples - made)
