"""The text of a source's row, from its columns."""

from __future__ import annotations

from emma.recipes.schema.corpus import Source
from emma.tools.corpus.reading import Row

__all__ = ["texts_of"]


def texts_of(row: Row, source: Source) -> list[str]:
    """The text of a row, or both sides of a pair; "" where the row has none.

    Raises:
        ValueError: a column holds something else than text, or the template names a column that the row lacks.
    """
    values, pair = row.values, source.kind == "parallel"
    names = [source.src_text_column, source.tgt_text_column] if pair else source.text_columns
    for name in names:
        value = values[name]
        if value is None:
            values[name] = ""
        elif not isinstance(value, str):
            raise ValueError(f"`{name}` is of type {type(value).__name__}, not text")
    if pair or (source.template is None and len(names) == 1):
        return [values[name] for name in names]
    try:
        if source.template is not None:
            return [source.template.format_map(values)]
    except (KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"the template names {error}, which the row lacks") from None
    return ["\n\n".join(values[name] for name in names if values[name])]
