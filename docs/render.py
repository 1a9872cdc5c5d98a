# SPDX-License-Identifier: GPL-2.0-or-later
"""Renders README.md and docs/ to HTML: `python docs/render.py DIRECTORY`.

A link to a file that is not there is an error: the pages are checked as they are rendered.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ max-width: 52rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }}
pre {{ overflow-x: auto; padding: .7rem; background: #f4f4f4; }}
code {{ font-size: 90%; }}
table {{ border-collapse: collapse; }}
td, th {{ border: 1px solid #ccc; padding: .2rem .6rem; text-align: left; }}
</style>
<body>
{body}
</body>
</html>
"""


def render(source: Path, target: Path) -> list[str]:
    """Writes `source` as HTML to `target`; returns the links in it that lead nowhere."""
    body: str = MarkdownIt("commonmark").enable("table").render(source.read_text())
    links = re.findall(r'(?:href|src)="([^"#]+)', body)
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    body = re.sub(r'href="([^":#]+)\.md', r'href="\1.html', body)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(PAGE.format(title=source.stem, body=body))
    return [f"{source.relative_to(ROOT)}: {link}" for link in local if not (source.parent / link).exists()]


def main() -> int:
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    broken = []
    for source in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        broken += render(source, out / source.relative_to(ROOT).with_suffix(".html"))
    for picture in sorted(p for p in (ROOT / "docs").rglob("*") if p.suffix in (".svg", ".png")):
        target = out / picture.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, target)
    print(f"{out}/README.html is where to start")
    for link in broken:
        print(f"broken link in {link}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
