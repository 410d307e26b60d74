"""What all recipe sections share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """A part of a recipe: unknown keys and wrong types are refused, values don't change after loading.

    The docstring under each field is the documentation of that key: meaning, unit, default (`recipes.explain` reads it).
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
