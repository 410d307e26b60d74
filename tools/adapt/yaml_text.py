"""Recipes as commented YAML: every value under the comment that explains it."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

__all__ = ["Said", "comment", "yaml_text"]

_PLAIN = re.compile(r"(?:[A-Za-z/]|\.{1,2}/)[\w./+-]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
_WIDTH = 110


class Said:
    """A value and the comment above it."""

    def __init__(self, value: Any, why: str) -> None:
        self.value, self.why = value, why


def comment(text: str, indent: str = "") -> list[str]:
    """Lines of a comment; lines that begin with a space stay as they are."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(" ") or not line:
            lines.append(f"{indent}# {line}".rstrip())
        else:
            lines += textwrap.wrap(
                line, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
    return lines


def yaml_text(values: Mapping[str, Any], indent: str = "") -> str:
    """A mapping as YAML; its own keys are set apart by blank lines."""
    lines: list[str] = []
    for key, value in values.items():
        why = None
        if isinstance(value, Said):
            value, why = value.value, value.why
        if why:
            lines += comment(why, indent)
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{_scalar(key)}:", yaml_text(value, indent + "  ").rstrip("\n")]
        else:
            lines.append(f"{indent}{_scalar(key)}: {_scalar(value)}")
        if not indent:
            lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _scalar(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return f"{value}"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)


def _number(value: float) -> str:
    """A float that YAML reads as one: with a point, and a signed exponent."""
    text = repr(value)
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{e}{exponent}"
