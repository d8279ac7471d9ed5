"""The lens as a file: one HTML page that needs nothing else, or a PNG or SVG picture.

What a page draws (:func:`contents`) is also kept in a saved notebook, as an output of type
``MIME`` that no notebook shows; the website draws a page from it.

The page holds ``lens.js`` unchanged, and the data as JSON in which ``<`` is written ``\\u003c``, so
that no token can end its element. A content security policy with the hashes of our own script and
style lets nothing else run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from comet_lib.errors import CometError
from comet_lib.files import whole_file, write_text
from comet_lib.lens.align import shown
from comet_lib.lens.data import LensData, Occlusion, occlusion_payload, payload
from comet_lib.lens.static import lens_figure

HERE = Path(__file__).parent
REPOSITORY = "https://github.com/comet-course/comet"  # as [tool.comet] in pyproject.toml says
LIMIT = 1_000_000  # bytes; above it a page leaves single heads out
SAVED = 60_000  # bytes of maps; above it a saved notebook does
MIME = "application/vnd.comet.lens+json"

_PAGE_CSS = """
:root { color-scheme: light dark; }
body { margin: 0; padding: 20px clamp(12px, 3vw, 40px); background: #ffffff; color: #1d1d1f; }
header p, footer { max-width: 70ch; }
header, footer { font: 14px/1.5 system-ui, "Segoe UI", sans-serif; }
h1 { font-size: 21px; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 20px; }
a { color: #0062a0; }
@media (prefers-color-scheme: dark) {
  body { background: #17171a; color: #ececee; }
  a { color: #7cc4f0; }
}
[data-framed] :is(header, footer) { display: none; }
[data-framed] body { padding: 8px 4px; }
[theme="light"] body { background: #ffffff; color: #1d1d1f; }
[theme="dark"] body { background: #17171a; color: #ececee; }
"""

_START = """
const page = JSON.parse(document.getElementById("lens-data").textContent);
const text = atob(page.maps);
const maps = new Uint8Array(text.length);
for (let i = 0; i < text.length; i++) maps[i] = text.charCodeAt(i);
const state = { header: page.header, maps, occlusion: page.occlusion, ...page.selection };
const listeners = {};
const model = {
  get: (name) => state[name],
  set: (name, value) => {
    if (state[name] === value) return;
    state[name] = value;
    (listeners[`change:${name}`] ?? []).forEach((call) => call());
  },
  save_changes: () => {},
  on: (name, call) => { (listeners[name] ??= []).push(call); },
  off: () => {},
};
render({ model, el: document.getElementById("lens") });
if (window.parent !== window) { // in another page: only the lens, as high as it is, in its theme
  document.documentElement.dataset.framed = "";
  window.addEventListener("message", ({ source, data }) => {
    if (source !== window.parent || !["light", "dark"].includes(data?.theme)) return;
    document.documentElement.setAttribute("theme", data.theme);
  });
  const tell = () => window.parent.postMessage({ lens: document.body.offsetHeight }, "*");
  new ResizeObserver(tell).observe(document.body);
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<meta name="description" content="{finding}">
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>A large language model (the teacher) and a small one that learned from it (the student) read the
same sentence. These maps show which tokens each of them looks at, and where the two differ.</p>
</header>
<main id="lens"></main>
<noscript><p>{finding}. The maps are drawn by a script inside this page; allow it to see them.</p>
</noscript>
<footer>
<p>A page of <a href="{repository}">the comet course on knowledge distillation</a>. It holds its
data and works without a network.</p>
</footer>
<script type="application/json" id="lens-data">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def contents(
    data: LensData,
    selection: Mapping[str, int] | None = None,
    heads: bool = True,
    occlusion: Occlusion | None = None,
) -> dict[str, Any]:
    """What a page draws, as JSON: its title and finding, and what ``lens.js`` reads."""
    header, maps = payload(data, heads)
    chosen = data.start() | dict(selection or {})
    return {
        "title": "Attention lens" + (f": “{shown(data.text, 80)}”" if data.text else ""),
        "finding": data.finding(**chosen),
        "header": header,
        "selection": chosen,
        "occlusion": occlusion_payload(occlusion),
        "maps": base64.b64encode(maps).decode(),
    }


def saved(data: LensData, selection: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The :func:`contents` for a notebook: without single heads if they would make it large, and
    without an occlusion, which takes a forward pass for every token."""
    _, maps = payload(data)
    return contents(data, selection, heads=len(maps) <= SAVED)


def page(data: LensData, selection: Mapping[str, int] | None = None) -> str:
    """The HTML page. ``selection`` has the names of :class:`comet_lib.lens.widget.LensWidget`.

    Single heads are left out, and the page says so, if they would make it larger than 1 MB.
    """
    text = drawn(contents(data, selection, occlusion=data.occlusion))
    if len(text.encode()) > LIMIT and (data.teacher_heads or data.student_heads):
        text = drawn(contents(data, selection, heads=False, occlusion=data.occlusion))
    return text


def drawn(found: Mapping[str, Any]) -> str:
    """The HTML page that draws such :func:`contents`."""
    script = (HERE / "lens.js").read_text(encoding="utf-8") + _START
    style = _PAGE_CSS + (HERE / "lens.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"script-src {_hash(script)}; style-src {_hash(style)}"
    )
    return _PAGE.format(
        policy=policy,
        title=html.escape(found["title"]),
        finding=html.escape(found["finding"]),
        repository=REPOSITORY,
        style=style,
        data=embedded_json(found),
        script=script,
    )


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a ``<script>`` element, whatever its texts are."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":  # they occur only inside JSON's strings
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _hash(text: str) -> str:
    """A source for the content security policy: this very inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write_lens(
    data: LensData, path: str | Path, selection: Mapping[str, int] | None = None
) -> Path:
    """Write ``path``, whole or not at all: ``.html`` the page, ``.png`` or ``.svg`` the figure.

    Raises:
        CometError: any other ending.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind in (".html", ".htm"):
        return write_text(path, page(data, selection))
    if kind not in (".png", ".svg"):
        raise CometError(f"{path}: a lens is written as .html, .png or .svg; change the ending.")
    figure = lens_figure(data, **(selection or {}))
    try:
        with whole_file(path) as temporary, plt.rc_context({"svg.hashsalt": "comet"}):
            date: dict[str, Any] = {"Date": None} if kind == ".svg" else {}
            figure.savefig(temporary, format=kind[1:], dpi=150, bbox_inches="tight", metadata=date)
            temporary.chmod(0o644)
    finally:
        plt.close(figure)
    return path
