"""Fills the pages with what the code itself says: flags, methods, names, counters. mkdocs calls on_page_markdown."""

from dataclasses import fields
from typing import Any

from fastdarts.networks.counters import RULES
from fastdarts.registry import METHODS, OBJECTIVES, RETRAININGS
from fastdarts.settings import SearchCifarSettings, SearchImagenetSettings
from fastdarts.settings.fields import Settings
from fastdarts.spaces.published import rows

COMMANDS: dict[str, type[Settings]] = {"search_imagenet": SearchImagenetSettings, "search_cifar": SearchCifarSettings}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace {{ NAME }} by the table of that name."""
    for name, table in TABLES.items():
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


def trainings() -> str:
    """Format a row for each training recipe: where it is from, its published results, and what it sets."""
    lines = ["| name | from | published | sets |", "|---|---|---|---|"]
    for name, row in RETRAININGS.items():
        sets = ", ".join(f"`{n}={v}`" for n, v in row.settings.items())
        lines.append(f"| `{name}` | {row.source} | {row.published} | {sets} |")
    return "\n".join(lines)


def genotypes() -> str:
    """Format a row for each published genotype."""
    lines = ["| name | also | from |", "|---|---|---|"]
    for name, row in rows().items():
        also = ", ".join(f"`{other}`" for other in row.get("also", ()))
        lines.append(f"| `{name}` | {also} | {row['source']} |")
    return "\n".join(lines)


def counters() -> str:
    """Format a row for each rule that counts multiply-adds."""
    return "\n".join(["| key | |", "|---|---|", *(f"| `{name}` | {about} |" for name, (_, about) in RULES.items())])


TABLES = {f.__name__: f for f in (flags, objectives, methods, trainings, genotypes, counters)}
