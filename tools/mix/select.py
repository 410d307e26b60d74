"""Chooses the documents of a mix: each source's tokens to the nearest document, the total to the token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emma.base.errors import UserError
from emma.tools.mix.catalogue import Catalogue
from emma.tools.mix.plan import PlannedSource

__all__ = ["Selection", "generator", "select_documents", "select_validation"]


@dataclass(frozen=True)
class Selection:
    """Documents of one source: indices into its component's catalogue (int64), each as many times as it is read."""

    component: str
    language: str
    documents: np.ndarray
    tokens: int


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """Random numbers for one purpose, e.g. the documents of one source, independent of all other purposes."""
    digest = hashlib.sha256("\x00".join(purpose).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()])


def select_documents(
    catalogues: Mapping[str, Catalogue], planned: Sequence[PlannedSource], seed: int, total: int
) -> Iterator[Selection]:
    """Yields every source's documents.

    A source of T tokens whose target is q·T + r is read whole q times. The rest, r, is filled with its first
    documents in a random order drawn from the seed, as many as come closest; the error is carried to the next
    source. So each source meets its target to within a document, and so does the mix: the last source
    (the one with the largest remainder) takes documents until `total` is reached. No source exceeds its cap,
    except to reach `total`.

    Args:
        catalogues: by component.
        planned: the plan's sources.
        seed: seed of the mix.
        total: tokens that all sources together must reach; they exceed it by less than a document.

    Raises:
        UserError: the sources cannot reach `total`.
    """
    members = [row for row in planned if row.target_tokens > 0]
    # The largest source comes last: it has documents of every size to close the gap.
    members.sort(key=lambda row: (row.source.tokens, row.source.key))
    selected, due = 0, 0
    for row in members[:-1]:
        due += row.target_tokens
        selection = _select(catalogues[row.source.component], row, seed, due - selected, exact=False)
        selected += selection.tokens
        yield selection
    last = _select(catalogues[members[-1].source.component], members[-1], seed, total - selected, exact=True)
    yield last


def _select(catalogue: Catalogue, row: PlannedSource, seed: int, target: int, *, exact: bool) -> Selection:
    source = row.source
    documents = catalogue.of_language(source.language, validation=False)
    sizes = catalogue.tokens[documents].astype(np.int64)
    held = int(sizes.sum())
    if held == 0:
        raise UserError(
            f"{source.component}/{source.language}: the plan takes {row.target_tokens} tokens from a source "
            "without documents"
        )
    whole, rest = divmod(max(target, 0), held)
    order = generator(seed, "documents", source.component, source.language).permutation(len(documents))
    ends = np.cumsum(sizes[order])
    # Documents of the last, partial pass: `reached` ends at or above the rest.
    reached = int(np.searchsorted(ends, rest, side="left")) + 1 if rest else 0
    taken = order[:reached]
    if rest and not exact:
        below = int(ends[reached - 2]) if reached > 1 else 0
        above = int(ends[reached - 1])
        over_cap = whole * held + above > row.cap_tokens
        if over_cap or rest - below <= above - rest:
            taken = order[: reached - 1]
    elif rest:
        # The shortest document that is long enough closes the remaining gap.
        below = int(ends[reached - 2]) if reached > 1 else 0
        candidates = order[reached - 1 :]
        fitting = candidates[sizes[candidates] >= rest - below]
        closing = fitting[np.argmin(sizes[fitting])]
        taken = np.append(order[: reached - 1], closing)
    counts = np.full(len(documents), whole, np.int64)
    counts[taken] += 1
    chosen = np.repeat(documents, counts)
    return Selection(source.component, source.language, chosen, int((counts * sizes).sum()))


def select_validation(
    catalogues: Mapping[str, Catalogue], targets: Mapping[tuple[str, str], int], seed: int
) -> Iterator[Selection]:
    """Yields the documents of a validation group: from each source, in a random order, as many as fit its
    target (at least one)."""
    for (component, language), target in targets.items():
        catalogue = catalogues[component]
        documents = catalogue.of_language(language, validation=True)
        sizes = catalogue.tokens[documents].astype(np.int64)
        order = generator(seed, "validation", component, language).permutation(len(documents))
        count = max(1, int(np.searchsorted(np.cumsum(sizes[order]), target, side="right")))
        taken = np.sort(order[:count])
        yield Selection(component, language, documents[taken], int(sizes[taken].sum()))
