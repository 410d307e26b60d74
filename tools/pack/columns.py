"""Small operations on Arrow text columns, all large strings."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["as_array", "codes_of", "constant", "encode_keys", "join"]

TEXT = pa.large_string()


def as_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array; what is one already is not copied."""
    if isinstance(column, pa.ChunkedArray) and column.num_chunks != 1:
        column = column.combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


def constant(value: str, count: int) -> pa.ChunkedArray:
    """A column that holds one value `count` times."""
    return pa.chunked_array([pa.repeat(pa.scalar(value, TEXT), count)])


def join(*parts: pa.ChunkedArray | pa.Array | str, separator: str = "") -> pa.ChunkedArray | pa.Array:
    """Joins columns and constants element by element; null where a column is null."""
    scalars = [pa.scalar(part, TEXT) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*scalars, pa.scalar(separator, TEXT))


def codes_of(table: pa.Table, names: tuple[str, ...]) -> pa.DictionaryArray:
    """Rows by their values in the named columns: `indices` codes them, in order of first appearance."""
    return as_array(pc.dictionary_encode(as_array(join(*(table[name] for name in names), separator="\x00"))))


def encode_keys(table: pa.Table, names: tuple[str, ...]) -> tuple[pa.Array, list[tuple[str, ...]]]:
    """Code of each row by its values in the named columns, and the values of each code in order of first
    appearance."""
    encoded = codes_of(table, names)
    return encoded.indices, [tuple(key.split("\x00")) for key in encoded.dictionary.to_pylist()]
