"""Sphinx's settings for the course's website. Build it with ``make site``.

Everything the pages need comes with them, including MathJax: they read the same without a network.
"""

from __future__ import annotations

import html
import os
import re
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))
from docstrings import keep_formulas
from docutils import nodes

os.environ.setdefault("COMET_PROFILE", "tiny")  # signatures must not depend on the machine
ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

project = "comet"
author = SETTINGS["project"]["authors"][0]["name"]
copyright = author
release = version = SETTINGS["project"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
root_doc = "index"

# Notebooks: show the committed outputs, execute nothing. A live view is shown as its picture or
# its text; tools/build_site.py has given each lens a frame.
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}
nb_mime_priority_overrides = [
    ("html", "application/vnd.jupyter.widget-view+json", None),
    ("html", "application/javascript", None),
    ("html", "image/png", 5),
]
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

# One file with all of MathJax and its glyphs, from an installed package.
MATHJAX = "sphinx-mathjax-offline/static/mathjax/tex-svg.js"
mathjax_path = Path(MATHJAX).name

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True  # as written: the ablation's variants would fill a screen
python_maximum_signature_line_length = 88
# Names from other libraries get no link: their pages are on other hosts.
nitpick_ignore_regex = [(r"py:.*", r"(?!comet_lib\.).*|.*\.[A-Z]")]  # nor have type variables

highlight_language = "text"  # formulas in docstrings; code names its language

html_theme = "sphinx_book_theme"
html_title = "comet"
owner, name = urlsplit(SETTINGS["tool"]["comet"]["repository"]).path.strip("/").split("/")
html_baseurl = f"https://{owner}.github.io/{name}/"
html_favicon = str(ROOT / "playground" / "icon.svg")
html_static_path = [
    "static",
    str(distribution("sphinx-mathjax-offline").locate_file(MATHJAX)),
]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_permalinks_icon = "#"
html_theme_options = {
    "repository_url": SETTINGS["tool"]["comet"]["repository"],
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 1,
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
}


def own_members(app: Any, parent: str, name: str, member: Any, skip: bool, options: Any) -> Any:
    """Leave out what a class has from elsewhere: torch.sum as a default, sklearn's setters."""
    own = str(getattr(member, "__module__", None)).startswith("comet_lib")
    return True if parent == "class" and callable(member) and not own else None


def describe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """What a search engine or a chat shows of a page: its first real paragraph, and a picture."""
    kinds = (nodes.paragraph, nodes.raw)  # the home page's first is HTML
    found = [one for one in doctree.findall() if isinstance(one, kinds)] if doctree else []
    texts = [re.sub(r"<[^>]+>", "", one.astext()) for one in found]
    texts.append(SETTINGS["project"]["description"])
    lead = " ".join(next((one for one in texts if len(one) > 80), texts[-1]).split())
    lead = lead if len(lead) <= 200 else lead[:199].rsplit(" ", 1)[0] + "…"
    tags = {
        "description": lead,
        "og:title": html.unescape(re.sub(r"<[^>]+>", "", context.get("title") or html_title)),
        "og:description": lead,
        "og:type": "website",
        "og:url": f"{html_baseurl}{page}.html",
        "og:image": f"{html_baseurl}_static/preview.png",
        "twitter:card": "summary_large_image",
    }
    context["metatags"] = context.get("metatags", "") + "".join(
        f'<meta {"property" if ":" in key and not key.startswith("twitter") else "name"}="{key}" '
        f'content="{html.escape(value)}">\n'
        for key, value in tags.items()
        if value
    )


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", lambda *args: keep_formulas(args[-1]))
    app.connect("autodoc-skip-member", own_members)
    app.connect("html-page-context", describe)
