"""Generates docs/modules.md: the first paragraph of every module's docstring.

python -m tests.module_table > docs/modules.md
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: The packages of the product, from the top layer to the bottom.
PACKAGES = ("firstdraft", "gateway", "workers", "broker", "schemas", "config")


def modules() -> list[Path]:
    """Every module of the product, by package."""
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def summary(module: Path) -> str:
    """The first paragraph of a module's docstring; empty if it has none."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def markdown() -> str:
    """The whole page."""
    rows = ["# Modules", "", "Made by `python -m tests.module_table > docs/modules.md`; a test compares the two.", ""]
    for package in PACKAGES:
        rows += [f"## {package}", "", "| module | owns |", "| --- | --- |"]
        of_package = [module for module in modules() if module.relative_to(ROOT).parts[0] == package]
        rows += [f"| `{module.relative_to(ROOT)}` | {summary(module)} |" for module in of_package]
        rows.append("")
    return "\n".join(rows)


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201 - this is its output
