"""What MkDocs is told beside mkdocs.yml: pages that lie outside `docs/`, and links to them.

README files of examples, CONTRIBUTING and CHANGELOG become pages. A link to any other file of the repository becomes
the file's name: the site holds no source code, and knows no address where the repository is.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def examples() -> dict[str, str]:
    """The README of each example in the repository -> its page."""
    found = sorted((ROOT / "examples").glob("*/README.md"))
    return {readme.relative_to(ROOT).as_posix(): f"examples/{readme.parent.name}.md" for readme in found}


def pages() -> dict[str, str]:
    """Path in the repository -> page, of all that lies outside `docs/`."""
    return {**examples(), **{path: page for path, page in OUTSIDE.items() if (ROOT / path).exists()}}


def on_config(config: Any) -> Any:
    """The examples' pages take their place in the navigation."""
    nav = [{"Examples": list(examples().values())} if item == {"Examples": "EXAMPLES"} else item for item in config.nav]
    nav = [item for item in nav if not _is_absent(item)]
    config.nav = nav
    return config


def _is_absent(item: Any) -> bool:
    """Whether a page of `OUTSIDE` is named whose file is not there."""
    page = next(iter(item.values())) if isinstance(item, dict) else item
    return page in OUTSIDE.values() and page not in pages().values() and not (ROOT / "docs" / page).exists()


def on_files(files: Files, config: Any) -> Files:
    """Add the pages whose files lie outside `docs/`."""
    for path, page in pages().items():
        if page != OUTSIDE["README.md"]:
            files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are right in the repository become links as they are right in the site."""
    here = page.file.src_uri
    origin = next((path for path, made in pages().items() if made == here and path != "README.md"), f"docs/{here}")

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found.group(1), found.group(2), found.group(3) or ""
        path = normpath(f"{PurePosixPath(origin).parent}/{target}")
        made = path.removeprefix("docs/") if path.startswith("docs/") else pages().get(path)
        if made is not None:
            return f"[{text}]({relpath(made, PurePosixPath(here).parent.as_posix())}{anchor})"
        if not (ROOT / path).exists():
            return found.group(0)  # leads nowhere: let MkDocs say so
        return f"{text} (`{path}`)" if text.strip("`") != path else f"`{path}`"

    return _LINK.sub(link, markdown)
