"""Fills the pages with what the code itself says: flags, methods, names, counters. mkdocs calls the functions on_*."""

from dataclasses import Field, fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from fastdarts.networks.counters import RULES
from fastdarts.registry import METHODS, OBJECTIVES, RETRAININGS
from fastdarts.settings import EvaluateSettings, RetrainSettings, SearchCifarSettings, SearchImagenetSettings
from fastdarts.settings.fields import Settings
from fastdarts.settings.values import choices
from fastdarts.spaces.published import rows

COMMANDS: dict[str, dict[str, type[Settings]]] = {  # by table
    "flags": {"search_imagenet": SearchImagenetSettings, "search_cifar": SearchCifarSettings},
    "retrain_flags": {"retrain": RetrainSettings},
    "evaluate_flags": {"evaluate": EvaluateSettings},
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add CONTRIBUTING.md, which is outside of docs/, as a page."""
    source = Path(config.docs_dir).parent / "CONTRIBUTING.md"
    files.append(File.generated(config, "contributing.md", abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace {{ NAME }} by the table of that name, and links between docs/ and the checkout by those of the site."""
    for name, table in TABLES.items():
        markdown = markdown.replace(f"{{{{ {name} }}}}", table())
    return markdown.replace("](../CONTRIBUTING.md", "](contributing.md").replace("](docs/", "](")


def flags(commands: dict[str, type[Settings]]) -> str:
    """Format a table for each group of settings: flag, meaning and choices, the default in each command."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    texts: dict[str, dict[str, str]] = {}
    for command, settings in commands.items():
        hints = get_type_hints(settings)
        for f in fields(settings):
            name = f"`{f.name.upper()}`" if f.metadata["positional"] else f"`--{f.name}`"
            rows = found.setdefault(settings.titles()[f.name], {})
            rows.setdefault(name, {})[command] = "" if f.default is None else f"`{f.default}`"
            texts.setdefault(name, {})[command] = _meaning(f, hints[f.name])
    parts = []
    for title, rows in found.items():
        parts.append(
            f"### {title[0].upper()}{title[1:]}\n\n| flag | | {' | '.join(commands)} |\n|---|---|{'---|' * len(commands)}"
        )
        parts += [
            f"| {name} | {_meanings(texts[name])} | {' | '.join(defaults.get(c, 'not there') for c in commands)} |"
            for name, defaults in rows.items()
        ]
        parts.append("")
    return "\n".join(parts)


def _meaning(f: Field[Any], hint: Any) -> str:
    known = choices(f, hint)
    text = f.metadata["help"].replace("|", "\\|").replace("*", "\\*")
    return f"{text} ({', '.join(f'`{name}`' for name in known)})" if known else text


def _meanings(by_command: dict[str, str]) -> str:
    """Return the meaning of a flag, or that of each command where they differ."""
    first, *others = dict.fromkeys(by_command.values())
    return "; ".join(f"{command}: {text}" for command, text in by_command.items()) if others else first


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
    """Format a row for each count that is made by a rule: of multiply-adds, elements, layers."""
    return "\n".join(["| key | |", "|---|---|", *(f"| `{name}` | {about} |" for name, (_, about) in RULES.items())])


TABLES = {f.__name__: f for f in (objectives, methods, trainings, genotypes, counters)}
TABLES |= {name: partial(flags, commands) for name, commands in COMMANDS.items()}
