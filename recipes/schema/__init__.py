"""The typed schema of recipes. Import the sections from their modules; `Recipe` is the whole."""

from emma.recipes.schema.run import Recipe

__all__ = ["Recipe"]
