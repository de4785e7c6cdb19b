"""A hook of mkdocs: pages that stand elsewhere in the repository, and links to them."""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml import converter
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
    """Pictures open in full size, formulas are MathML, no option is broken, and the search needs no network."""
    output = re.sub(r"<(p|td|li)>.*?</\1>", _formulas, output, flags=re.DOTALL)
    output = re.sub(r"<code>([^<]*--[^<]*)</code>", _whole_options, output)
    output = re.sub(r'(<img [^>]*src="(?!data:)([^"]+\.webp)"[^>]*>)', r'<a href="\2">\1</a>', output)
    return _own_shim(output, page.file.dest_uri)


def on_post_template(output_content: str, template_name: str, **_: Any) -> str:
    """The same for pages that are no page of the nav, as 404.html."""
    return _own_shim(output_content, template_name)


def _formulas(text: re.Match[str]) -> str:
    """LaTeX between dollars as MathML, which browsers draw without a script."""

    def drawn(formula: re.Match[str]) -> str:
        display = "block" if formula[1] else "inline"
        return f'<span class="formula-{display}">{converter.convert(html.unescape(formula[2]), display=display)}</span>'

    return re.sub(r"(\$)?\$([^$]+)\$(?(1)\$)", drawn, text[0])


def _whole_options(code: re.Match[str]) -> str:
    return "<code>" + re.sub(r"--[\w-]+", r'<span class="option">\g<0></span>', code[1]) + "</code>"


def _own_shim(page: str, name: str) -> str:
    return page.replace(SHIM, "../" * name.count("/") + "vendor/iframe-worker.js")
