"""One real run for all proofs: tensor 2 with sequence parallelism × data 2, documents masked, four ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emma.tools.runs.run_folder import RunFolder
from tests.tools.prove.small import Small, make_small, train_faulty

LAYOUT = ("cluster.gpus_per_node=4", "parallelism={tensor: 2, sequence: true}")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing by more, and lose much on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("prove"))


@pytest.fixture(scope="session")
def trained(small: Small) -> RunFolder:
    return train_faulty(small.recipe("trained", *LAYOUT))
