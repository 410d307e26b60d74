"""Log-likelihoods of many continuations, with what they share read once.

The labels of a multiple-choice item follow the same prompt, and items often begin with the same worked examples. Requests
are sorted as sequences of tokens and joined to groups with a common beginning where that saves tokens. A group's beginning
is read once, batched with those of other groups; its endings branch from copies of the cache. Batches hold rows of about
equal length up to a budget of tokens. Only positions that are scored get logits.

The result is that of separate rows up to rounding, which tests hold to 1e-5 in FP32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emma.base.errors import UserError

__all__ = ["Group", "Reader", "Row", "batches", "group_rows"]

_LOGITS_AT_ONCE = 64 << 20
"""Logits (4 bytes each) held at once."""


@dataclass(frozen=True)
class Row:
    """Token ids of a request; those from `first` on are scored."""

    number: int
    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Group:
    """Rows whose first `shared` ids are the same."""

    rows: tuple[Row, ...]
    shared: int

    @property
    def tokens(self) -> int:
        """Tokens to read: the beginning once, and every row's own ending without its last token."""
        return self.shared + sum(len(row.ids) - 1 - self.shared for row in self.rows)


def group_rows(rows: Sequence[Row]) -> list[Group]:
    """Groups of rows that are cheaper together than apart, in lexicographic order.

    The last token of a row is never read, so a beginning ends before it.
    """
    groups: list[Group] = []
    current: list[Row] = []
    shared = cost = 0
    for row in sorted(rows, key=lambda row: row.ids):
        alone = len(row.ids) - 1
        if current:
            common = min(_common(current[-1].ids, row.ids), shared, alone)
            joined = cost + (len(current) - 1) * (shared - common) + alone - common
            if common and joined < cost + alone:
                current.append(row)
                shared, cost = common, joined
                continue
            groups.append(Group(tuple(current), shared))
        current, shared, cost = [row], alone, alone
    if current:
        groups.append(Group(tuple(current), shared))
    return groups


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))


def batches[T](things: Sequence[tuple[int, T]], budget: int, most: int | None = None) -> Iterator[list[T]]:
    """Things of about equal length, longest first, at most `budget` padded tokens (but one thing at least) to a batch.

    Args:
        things: length in tokens, and the thing.
        budget: tokens of a batch, including padding.
        most: maximum number of things in a batch.
    """
    batch: list[T] = []
    longest = 0
    for length, thing in sorted(things, key=lambda pair: -pair[0]):
        longest = longest or max(1, length)
        if batch and ((len(batch) + 1) * longest > budget or len(batch) == most):
            yield batch
            batch, longest = [], max(1, length)
        batch.append(thing)
    if batch:
        yield batch


class Reader:
    """Reads groups with a causal language model of `transformers`.

    Args:
        model: in evaluation mode, on its device.
        budget: tokens of one batch, including padding.
        most: maximum rows of one batch.
    """

    def __init__(self, model: Any, budget: int, most: int | None = None) -> None:
        self.model, self.budget, self.most = model, budget, most
        self.forwarded = 0
        self._plain_head: bool | None = None

    def take(self) -> int:
        """Tokens that were really read (without padding) since the last call."""
        taken, self.forwarded = self.forwarded, 0
        return taken

    @torch.inference_mode()
    def score(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        """Sum of the log-likelihoods (nats, FP32) of each row's scored ids, and whether each is the likeliest; in order
        of the rows' numbers.

        Raises:
            UserError: a likelihood is not finite.
        """
        if self._plain_head is None:
            self._plain_head = self._head_is_plain()
        sums, greedy = [0.0] * len(rows), [True] * len(rows)
        groups = [(group.shared, group) for group in group_rows(rows)]
        for batch in batches(groups, self.budget, self.most):
            self._score_batch(batch, sums, greedy)
        for row in rows:
            if not sums[row.number] == sums[row.number] or abs(sums[row.number]) == float("inf"):
                raise UserError(
                    f"a likelihood is {sums[row.number]}; the model's weights or logits are broken"
                )
        return list(zip(sums, greedy, strict=True))

    def _score_batch(self, groups: Sequence[Group], sums: list[float], greedy: list[bool]) -> None:
        branching = any(len(row.ids) - 1 > group.shared for group in groups for row in group.rows)
        prefixes = [group.rows[0].ids[: group.shared] for group in groups]
        states, cache = self._forward(prefixes, keep=branching)
        wanted: list[
            tuple[int, int, Row, int]
        ] = []  # row of states, position, request, index of the scored id
        for place, group in enumerate(groups):
            for row in group.rows:
                wanted += [
                    (place, target - 1, row, target)
                    for target in range(row.first, min(len(row.ids), group.shared + 1))
                ]
        self._add(states, wanted, sums, greedy)
        endings = [
            (len(row.ids) - 1, (place, group.shared, row))
            for place, group in enumerate(groups)
            for row in group.rows
            if len(row.ids) - 1 > group.shared
        ]
        longest = max(len(prefix) for prefix in prefixes)
        for branch in batches(endings, max(self.budget, longest + 1)):
            self._score_endings(branch, prefixes, cache, sums, greedy)

    def _score_endings(
        self,
        branch: Sequence[tuple[int, int, Row]],
        prefixes: Sequence[Sequence[int]],
        cache: Any,
        sums: list[float],
        greedy: list[bool],
    ) -> None:
        import copy

        places = torch.tensor([place for place, _, _ in branch], device=self.model.device)
        own = copy.deepcopy(cache)
        own.batch_select_indices(places)
        tails = [row.ids[shared:-1] for _, shared, row in branch]
        states, _ = self._forward(tails, past=own, before=[prefixes[place] for place, _, _ in branch])
        wanted = [
            (number, target - 1 - shared, row, target)
            for number, (_, shared, row) in enumerate(branch)
            for target in range(max(row.first, shared + 1), len(row.ids))
        ]
        self._add(states, wanted, sums, greedy)

    def _forward(
        self,
        inputs: Sequence[Sequence[int]],
        *,
        keep: bool = False,
        past: Any = None,
        before: Sequence[Sequence[int]] = (),
    ) -> tuple[torch.Tensor, Any]:
        """States [rows, width, …] of inputs padded on the right, after what the cache `past` holds of each row, which is
        padded on the right too: the mask hides the padding and positions go on where the row's own tokens ended."""
        device = self.model.device
        width = max(map(len, inputs))
        ids = torch.zeros(len(inputs), width, dtype=torch.long)
        mask = torch.zeros(len(inputs), width, dtype=torch.long)
        for place, row in enumerate(inputs):
            ids[place, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[place, : len(row)] = 1
        options: dict[str, Any] = {"use_cache": keep}
        if past is not None:
            held = past.get_seq_length()
            lengths = torch.tensor([len(row) for row in before])
            earlier = (torch.arange(held)[None, :] < lengths[:, None]).long()
            positions = lengths[:, None] + torch.arange(width)[None, :]
            mask = torch.cat([earlier, mask], dim=1)
            options = {
                "use_cache": True,
                "past_key_values": past,
                "position_ids": positions.to(device),
            }
        self.forwarded += sum(map(len, inputs))
        arguments = {"input_ids": ids.to(device), "attention_mask": mask.to(device), **options}
        if self._plain_head:
            found = self.model.base_model(**arguments)
            return found.last_hidden_state, getattr(found, "past_key_values", None)
        found = self.model(**arguments)
        return found.logits, getattr(found, "past_key_values", None)

    def _add(
        self,
        states: torch.Tensor,
        wanted: Sequence[tuple[int, int, Row, int]],
        sums: list[float],
        greedy: list[bool],
    ) -> None:
        """Adds the log-likelihoods of scored ids to their requests' sums; each position's logits are computed once."""
        places: dict[tuple[int, int], int] = {}
        for row, position, _, _ in wanted:
            places.setdefault((row, position), len(places))
        if not places:
            return
        keys = list(places)
        picked = states[
            torch.tensor([row for row, _ in keys], device=states.device),
            torch.tensor([position for _, position in keys], device=states.device),
        ]
        by_position: list[list[tuple[Row, int]]] = [[] for _ in keys]
        for row, position, request, target in wanted:
            by_position[places[row, position]].append((request, target))
        step = max(1, _LOGITS_AT_ONCE // self.model.get_input_embeddings().weight.shape[0])
        for begin in range(0, len(keys), step):
            logits = picked[begin : begin + step]
            if self._plain_head:
                logits = self.model.get_output_embeddings()(logits)
            logits = logits.float()
            total, best = torch.logsumexp(logits, dim=-1), logits.argmax(dim=-1)
            uses = [
                (place, request, request.ids[target])
                for place, found in enumerate(by_position[begin : begin + step])
                for request, target in found
            ]
            where = torch.tensor([place for place, _, _ in uses], device=logits.device)
            ids = torch.tensor([token for _, _, token in uses], device=logits.device)
            values = (logits[where, ids] - total[where]).double().tolist()
            likeliest = (best[where] == ids).tolist()
            for (_, request, _), value, first in zip(uses, values, likeliest, strict=True):
                sums[request.number] += value
                greedy[request.number] &= first

    def _head_is_plain(self) -> bool:
        """Whether logits are just the output layer of the last hidden state: no soft-capping, no scaling."""
        head = self.model.get_output_embeddings()
        if head is None:
            return False
        ids = torch.zeros(1, 3, dtype=torch.long, device=self.model.device)
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return bool(torch.equal(head(hidden), self.model(input_ids=ids, use_cache=False).logits))
