"""What all recipe sections share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """A part of a recipe. Unknown keys and wrong types are refused; values do not change after loading.

    The docstring under a field documents its key (meaning, unit, default); `emma recipe explain` prints it.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
