"""The `corpus` section: how raw text becomes clean, deduplicated, split text."""

from __future__ import annotations

from recipes.schema.section import Section

__all__ = ["Corpus"]


class Corpus(Section):
    """Settings of `emma corpus`."""
