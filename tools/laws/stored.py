"""A fitted law in a file, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.tools.laws.law import Law, Repetition
from emma.tools.laws.models import MODELS

__all__ = ["StoredLaw", "read_law"]


@dataclass(frozen=True)
class StoredLaw:
    """A law with the names of what it speaks of.

    Attributes:
        law: at the budget of the run that it was fitted for.
        levers: names of the shares, `component` or `component/category` [levers].
        groups: names of the validation groups [groups].
    """

    law: Law
    levers: Sequence[str]
    groups: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        law = self.law
        return {
            "model": law.model,
            "levers": list(self.levers),
            "groups": list(self.groups),
            "base": law.base.tolist(),
            "own": law.own.tolist(),
            "parameters": law.parameters.tolist(),
            "covariance": law.covariance.tolist(),
            "epochs": law.repetition.epochs.tolist(),
            "repeats": law.repetition.constant,
            "doubt": law.doubt,
        }


def read_law(file: Path) -> StoredLaw:
    """The law of a `fit.json`.

    Raises:
        UserError: the file has none, or not all of one.
    """
    try:
        found: Mapping[str, Any] = read_json(file)["fitted"]
        levers, groups = found["levers"], found["groups"]
        parameters = np.array(found["parameters"], float)
        width = len(MODELS[found["model"]].typical(len(levers)))
        law = Law(
            found["model"],
            np.array(found["base"], float),
            np.array(found["own"], int),
            parameters.reshape(len(groups), width),
            np.array(found["covariance"], float).reshape(len(groups), width, width),
            Repetition(np.array(found["epochs"], float).reshape(len(levers)), float(found["repeats"])),
            float(found["doubt"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: holds no fitted law ({type(error).__name__}: {error}). Fix: call `emma mix optimise` again"
        ) from None
    return StoredLaw(law, levers, groups)
