"""HTML building blocks of the report. Every text argument is escaped."""

import base64
import json
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ground: #f5f7f9; --card: #fff; --ink: #1f2933; --muted: #5f6b7a; --line: #d5dbe3;
  --warn: #fff4e5; --warn-line: #d0661a; --code: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --card: #1d232a; --ink: #e4e9ee; --muted: #9aa5b1;
  --line: #37414d; --warn: #3a2817; --warn-line: #e58a44; --code: #14181d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 14px; }
h3 { font-size: 14px; margin: 18px 0 6px; color: var(--muted); font-weight: 600; }
p { margin: 6px 0; }
.muted, figcaption { color: var(--muted); }
section, .notice { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin-top: 18px; }
.notice { background: var(--warn); border: 2px solid var(--warn-line); }
.notice strong { display: block; font-size: 16px; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); gap: 12px; margin: 0; }
.figures div { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
.figures dt { color: var(--muted); font-size: 13px; }
.figures dd { margin: 0; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures small { display: block; font-size: 12.5px; font-weight: 400; color: var(--muted); }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin: 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; user-select: all; }
figure { margin: 14px 0 0; }
figure > svg, figure > img { display: block; width: 100%; height: auto; background: #fff; border-radius: 8px;
  border: 1px solid var(--line); }
figure > img { width: auto; max-width: 100%; }
figcaption { font-size: 13.5px; margin-top: 6px; }
.table { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(430px, 100%), 1fr)); column-gap: 36px;
  margin: 0; font-size: 13.5px; }
.table div { display: flex; padding: 4px 0; border-bottom: 1px solid var(--line); }
.table dt { flex: 0 0 34%; color: var(--muted); overflow-wrap: anywhere; padding-right: 10px; }
.table dd { margin: 0; min-width: 0; font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
details { margin-top: 10px; }
summary { cursor: pointer; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def page(title: str, *parts: str) -> str:
    """Return a self-contained document; `parts` are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a titled card around `parts` (HTML)."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def header(title: str, remark: str) -> str:
    """Return the page's header: its title and a muted remark."""
    return f'<header><h1>{escape(title)}</h1><p class="muted">{escape(remark)}</p></header>'


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def subtitle(text: str) -> str:
    """Return the title of a part of a section."""
    return f"<h3>{escape(text)}</h3>"


def notice(title: str, text: str) -> str:
    """Return a highlighted box."""
    return f'<div class="notice" role="alert"><strong>{escape(title)}</strong>{escape(text)}</div>'


def code(text: str) -> str:
    """Return a block that one click selects as a whole."""
    return f"<pre>{escape(text)}</pre>"


def key_figures(figures: Iterable[tuple[str, str, str]]) -> str:
    """Return tiles of (name, value, remark)."""
    tiles = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in figures
    )
    return '<dl class="figures">' + "".join(tiles) + "</dl>"


def table(rows: dict[str, Any]) -> str:
    """Return a table of names and values, one row each; values other than text are formatted as JSON."""
    cells = (f"<div><dt>{escape(str(name))}</dt><dd>{escape(_text(value))}</dd></div>" for name, value in rows.items())
    return '<dl class="table">' + "".join(cells) + "</dl>"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "—" if value is None else json.dumps(value, ensure_ascii=False)


def details(summary: str, lines: list[str], limit: int = 500) -> str:
    """Return a collapsible list of the first `limit` lines, nothing for an empty list."""
    if not lines:
        return ""
    rest = [f"… and {len(lines) - limit} more"] if len(lines) > limit else []
    text = "\n".join([*lines[:limit], *rest])
    return f"<details><summary>{escape(summary)}</summary>{code(text)}</details>"


def drawing(path: Path, alt: str, caption: str = "") -> str:
    """Return matplotlib's SVG as a part of the page: without prologue and namespaces, with unique ids. Raises OSError."""
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", path.read_text(encoding="utf-8").partition("<svg")[2], count=2)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{path.stem}-", svg)
    return _figure(f'<svg role="img" aria-label="{escape(alt)}"{svg}', caption)


def image(path: Path, alt: str, caption: str = "") -> str:
    """Return a PNG as a data URI. Raises OSError."""
    data = base64.b64encode(path.read_bytes()).decode()
    return _figure(f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">', caption)


def _figure(body: str, caption: str) -> str:
    return f"<figure>{body}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"
