"""What requests share is read once, and nothing changes but the cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.backends import ModelSettings, load_backend
from emma.tools.evaluation.benchmarks.prefixes import Reader, Row, batches, group_rows


def _rows(seed: int) -> list[Row]:
    """Items with worked examples in common, several labels each, labels that are beginnings of others, and loners."""
    draw = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(int(value) for value in draw.integers(2, 380, count))

    rows: list[tuple[tuple[int, ...], int]] = []
    examples = ids(40)
    for _ in range(3):
        prompt = (0, *examples, *ids(int(draw.integers(1, 60))))
        label = ids(4)
        for answer in (label, label[:1], label[:2], ids(1), ids(6), label):
            rows.append(((*prompt, *answer), len(prompt)))
    # Prompts of their own, far from equally long, each with labels that branch from it.
    for count in (5, 24, 80):
        prompt = ids(count)
        rows += [((*prompt, *ids(3)), count) for _ in range(3)]
    # An empty prompt, whole sentences as choices: what is shared is scored too.
    sentence = (0, *ids(30))
    rows += [((*sentence, *ids(5)), 1) for _ in range(3)]
    rows += [((0, *ids(int(draw.integers(2, 90)))), 1) for _ in range(5)]
    order = draw.permutation(len(rows))
    return [Row(number, *rows[place]) for number, place in enumerate(order)]


def _alone(model: torch.nn.Module, row: Row) -> tuple[float, bool]:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row.ids[:-1]])).logits[0].double()
    found = torch.log_softmax(logits, dim=-1)[torch.arange(row.first - 1, len(row.ids) - 1)]
    target = torch.tensor(row.ids[row.first :])
    return float(found.gather(1, target[:, None]).sum()), bool((found.argmax(dim=-1) == target).all())


@pytest.fixture(scope="module")
def language_model(reader: Path) -> HFLM:
    lm: HFLM = load_backend(reader, ModelSettings(device="cpu", batch_size=None), 1024)
    return lm


@pytest.mark.parametrize(("budget", "most"), [(1, None), (300, None), (100_000, None), (100_000, 2)])
def test_likelihoods_are_those_of_separate_rows(language_model: HFLM, budget: int, most: int | None) -> None:
    rows = _rows(1)
    found = Reader(language_model.model, budget, most).score(rows)
    for row, (value, greedy) in zip(rows, found, strict=True):
        wanted, likeliest = _alone(language_model.model, row)
        assert value == pytest.approx(wanted, abs=1e-5, rel=1e-7)
        assert greedy == likeliest


def test_an_answer_is_the_likeliest_only_if_all_its_tokens_are(language_model: HFLM) -> None:
    def next_after(*ids: int) -> int:
        with torch.inference_mode():
            return int(language_model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())

    prompt = (0, 17, 5, 200)
    first = next_after(*prompt)
    other = (first + 1) % 300
    answers = [(first, next_after(*prompt, first)), (other, next_after(*prompt, other)), (first, 3)]
    assert answers[0][1] != 3
    rows = [Row(number, (*prompt, *answer), len(prompt)) for number, answer in enumerate(answers)]
    found = Reader(language_model.model, 1000).score(rows)
    assert [greedy for _, greedy in found] == [True, False, False]


def test_a_model_with_more_than_an_output_layer_is_read_by_its_logits(language_model: HFLM) -> None:
    reader = Reader(language_model.model, 500)
    reader._plain_head = False
    rows = _rows(2)
    for row, (value, _) in zip(rows, reader.score(rows), strict=True):
        assert value == pytest.approx(_alone(language_model.model, row)[0], abs=1e-5, rel=1e-7)


def test_likelihoods_are_lm_evals(language_model: HFLM) -> None:
    """Also of requests that are longer than the window, which lose their beginning."""
    draw = np.random.default_rng(3)
    prompt = draw.integers(2, 380, 1100).tolist()
    requests = [(("", ""), prompt, draw.integers(2, 380, 5).tolist()) for _ in range(3)]
    requests += [(("", ""), prompt[:20], draw.integers(2, 380, count).tolist()) for count in (1, 3, 200)]
    wanted = HFLM._loglikelihood_tokens(language_model, requests, disable_tqdm=True, override_bs=2)
    found = language_model._loglikelihood_tokens(requests)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-3, rel=1e-6)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_labels_cost_little_and_groups_never_cost_more() -> None:
    prompt = tuple(range(2, 282))
    labels = [Row(number, (*prompt, 300 + number, 5, 6), 280) for number in range(7)]
    (group,) = group_rows(labels)
    assert (group.shared, group.tokens) == (280, 280 + 7 * 2)
    for seed in range(5):
        rows = _rows(seed)
        groups = group_rows(rows)
        assert sorted(row.number for group in groups for row in group.rows) == [row.number for row in rows]
        assert sum(group.tokens for group in groups) <= sum(len(row.ids) - 1 for row in rows)
        for group in groups:
            assert {row.ids[: group.shared] for row in group.rows} == {group.rows[0].ids[: group.shared]}
            assert all(group.shared <= len(row.ids) - 1 for row in group.rows)


def test_batches_keep_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 200).tolist()
    found = list(batches([(length, length) for length in lengths], 1000))
    assert sorted(length for batch in found for length in batch) == sorted(lengths)
    assert all(len(batch) * max(batch) <= 1000 for batch in found)
    assert [max(batch) for batch in found] == sorted((max(batch) for batch in found), reverse=True)
    assert [len(batch) for batch in batches([(5000, "a"), (1, "b")], 1000)] == [1, 1]
    assert max(len(batch) for batch in batches([(1, 0)] * 9, 1000, 4)) == 4


def test_broken_weights_are_named(language_model: HFLM) -> None:
    import copy

    model = copy.deepcopy(language_model.model)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="a likelihood is nan"):
        Reader(model, 100).score(_rows(0)[:3])
