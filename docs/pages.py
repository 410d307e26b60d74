"""Pages of the site that are no files in docs/: the repository's own Markdown, and the API reference."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("base", "commands", "recipes", "tools", "megatron_patches", "checkpoints_conversion", "slurm")

# Page of the site → file of the repository.
FROM_ROOT = {
    "index.md": "README.md",
    **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff")},
}


def modules() -> dict[str, list[str]]:
    """Folder of modules → its public modules, dotted, in the order of their names."""
    found: dict[str, list[str]] = defaultdict(list)
    for room in ROOMS:
        for path in sorted((ROOT / "emma" / room).resolve().rglob("*.py")):
            parts = ("emma", room, *path.relative_to((ROOT / "emma" / room).resolve()).with_suffix("").parts)
            if parts[-1] == "__init__" or any(part.startswith("_") for part in parts):
                continue
            found[".".join(parts[:-1])].append(".".join(parts))
    return dict(found)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the API reference to the navigation, by room."""
    rooms: dict[str, list[Any]] = defaultdict(list)
    for package in modules():
        rooms[package.split(".")[1]].append({package: f"api/{package}.md"})
    assert config.nav is not None
    config.nav.append({"API": [{f"emma.{room}": pages} for room, pages in rooms.items()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages' sources."""
    for name, source in FROM_ROOT.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for package, names in modules().items():
        text = f"# {package}\n\n" + "\n".join(f"::: {name}\n" for name in names)
        files.append(File.generated(config, f"api/{package}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links into docs/ and out of it into links within the site."""
    if page.file.src_uri in FROM_ROOT:
        markdown = re.sub(r"(\]\(|src=\")docs/", r"\1", markdown)
    return re.sub(
        r"\]\(\.\./(CONTRIBUTING|CHANGELOG|SECURITY|README)\.md", lambda m: f"]({m[1]}.md", markdown
    ).replace("](README.md", "](index.md")
