"""A hook of mkdocs: pages that stand elsewhere in the repository, and links to them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
SHIM = "https://unpkg.com/iframe-worker/shim"  # without it a browser does not search in files
ELSEWHERE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "notebooks/*.ipynb")


@event_priority(100)  # before the plugin that reads notebooks
def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of ELSEWHERE under their names in the repository."""
    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Links of the repository as links of the site, whose root is docs/; files that are no pages by their paths."""
    here = page.file.src_uri
    if any(Path(here).match(pattern) for pattern in ELSEWHERE):
        markdown = re.sub(r"\]\((\.\./)*docs/", "](" + "../" * here.count("/"), markdown)
    else:
        markdown = markdown.replace("](../", "](")

    def file(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), link[2]))
        return f"[{link[1]}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else f"`{path}`"

    return re.sub(r"\[([^\]]+)\]\(([^):#]+\.(?:py|jsonl|csv|toml|yml))\)", file, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Pictures open in full size; no option is broken after its hyphens; the search needs no network."""
    output = re.sub(r"<code>([^<]*--[^<]*)</code>", _whole_options, output)
    output = re.sub(r'(<img [^>]*src="(?!data:)([^"]+\.webp)"[^>]*>)', r'<a href="\2">\1</a>', output)
    return _own_shim(output, page.file.dest_uri)


def on_post_template(output_content: str, template_name: str, **_: Any) -> str:
    """The same for pages that are no page of the nav, as 404.html."""
    return _own_shim(output_content, template_name)


def _whole_options(code: re.Match[str]) -> str:
    return "<code>" + re.sub(r"--[\w-]+", r'<span class="option">\g<0></span>', code[1]) + "</code>"


def _own_shim(html: str, name: str) -> str:
    return html.replace(SHIM, "../" * name.count("/") + "vendor/iframe-worker.js")
