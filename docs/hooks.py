"""Fills the pages with what the code itself says: flags, objectives, methods. mkdocs calls on_page_markdown."""

from dataclasses import fields
from typing import Any

from fastdarts.registry import METHODS, OBJECTIVES
from fastdarts.settings import SearchCifarSettings, SearchImagenetSettings
from fastdarts.settings.fields import Settings

COMMANDS: dict[str, type[Settings]] = {"search_imagenet": SearchImagenetSettings, "search_cifar": SearchCifarSettings}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace {{ NAME }} by the table of that name."""
    for name, table in {"flags": flags, "objectives": objectives, "methods": methods}.items():
        markdown = markdown.replace(f"{{{{ {name} }}}}", table())
    return markdown


def flags() -> str:
    """Format a table for each group of settings: flag, meaning, the default in each command."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    texts: dict[str, str] = {}
    for command, settings in COMMANDS.items():
        for f in fields(settings):
            rows = found.setdefault(settings.titles()[f.name], {})
            rows.setdefault(f.name, {})[command] = "" if f.default is None else f"`{f.default}`"
            texts[f.name] = f.metadata["help"].replace("|", "\\|")
    parts = []
    for title, rows in found.items():
        parts.append(f"### {title[0].upper()}{title[1:]}\n\n| flag | | {' | '.join(COMMANDS)} |\n|---|---|---|---|")
        parts += [
            f"| `--{name}` | {texts[name]} | {' | '.join(defaults.get(c, 'not there') for c in COMMANDS)} |"
            for name, defaults in rows.items()
        ]
        parts.append("")
    return "\n".join(parts)


def objectives() -> str:
    """Format a row for each objective."""
    return "\n".join(["| name | |", "|---|---|", *(f"| `{name}` | {row.description} |" for name, row in OBJECTIVES.items())])


def methods() -> str:
    """Format a row for each method: where it is from, and the settings that it sets."""
    lines = ["| name | from | sets |", "|---|---|---|"]
    for name, row in METHODS.items():
        settings = {**row.edge, **row.outer, **row.schedule, **row.limits}
        lines.append(f"| `{name}` | {row.paper} | {', '.join(f'`{n}={v}`' for n, v in settings.items())} |")
    return "\n".join(lines)
