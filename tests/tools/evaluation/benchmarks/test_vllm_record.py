"""Whether the stand-in for vLLM has vLLM's signatures."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.backends import ModelSettings, load_backend

STAND_IN = Path(__file__).parent / "vllm_stand_in" / "vllm"
FILES = {
    "LLM.__init__": "entrypoints/llm.py",
    "LLM.generate": "entrypoints/llm.py",
    "SamplingParams": "sampling_params.py",
    "resolve_chat_template": "renderers/hf.py",
}
"""Where vLLM 0.20.0 defines what is recorded."""


def test_a_backend_that_is_missing_is_named(reader: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vllm is installed")
    with pytest.raises(UserError, match="vllm is not installed"):
        load_backend(reader, ModelSettings(backend="vllm"), 64)


def _signatures(folder: Path, files: dict[str, str]) -> dict[str, dict[str, str]]:
    """Parameters (of a class without `__init__`: fields) and their defaults, by name."""
    found = {}
    for name, file in files.items():
        body: list[ast.stmt] = ast.parse((folder / file).read_text(encoding="utf-8")).body
        for part in name.split("."):
            node = next(
                one for one in body if isinstance(one, ast.ClassDef | ast.FunctionDef) and one.name == part
            )
            body = node.body
        if isinstance(node, ast.ClassDef):
            found[name] = {
                one.target.id: ast.unparse(one.value)
                for one in body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and one.value
            }
            continue
        named = node.args.args
        defaults = [None] * (len(named) - len(node.args.defaults)) + list(node.args.defaults)
        pairs = [
            *zip(named, defaults, strict=True),
            *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
        ]
        found[name] = {one.arg: ast.unparse(value) if value else "" for one, value in pairs}
    return found


def test_the_record_is_vllms() -> None:
    """Where vLLM 0.20 is installed, its sources (no GPU is needed to read them) have the recorded signatures."""
    real = importlib.util.find_spec("vllm")
    if real is None or real.origin is None or importlib.metadata.version("vllm") != "0.20.0":
        pytest.skip("vLLM 0.20.0 is not installed")
    theirs = _signatures(Path(real.origin).parent, FILES)
    ours = _signatures(
        STAND_IN,
        {**FILES, "LLM.__init__": "engine.py", "LLM.generate": "engine.py"},
    )
    # Of SamplingParams the first fields are recorded; the rest come after them.
    kept = list(theirs["SamplingParams"].items())[: len(ours["SamplingParams"])]
    assert ours == {**theirs, "SamplingParams": dict(kept)}
