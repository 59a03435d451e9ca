"""Brings into the site what lies beside docs/: the benchmarks' plots, CONTRIBUTING, SECURITY and
CHANGELOG.

A page links to such a file by its path in the repository (``../CONTRIBUTING.md``), so that the link
also works where the repository is browsed. In the site the file lies at the same path without the
first ``../``.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).resolve().parents[1]
_PATTERNS = ("benchmarks/results/*.png", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
_LINK = re.compile(r"\]\((?P<up>(?:\.\./)+)(?P<path>[^)#]+)")


def _outside() -> dict[str, Path]:
    """Path from the repository's folder -> file, of everything that is brought in."""
    found = (path for pattern in _PATTERNS for path in sorted(_ROOT.glob(pattern)))
    return {path.relative_to(_ROOT).as_posix(): path for path in found}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the files to those of docs/."""
    for name, path in _outside().items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Rewrites links to them."""
    depth = page.file.src_uri.count("/") + 1
    known = _outside()

    def rewrite(match: re.Match) -> str:
        up, path = match["up"], match["path"]
        if up.count("../") == depth and path in known:
            return f"]({'../' * (depth - 1)}{path}"
        return match[0]

    return _LINK.sub(rewrite, markdown)
