"""What goes into the wheel, and where: a build hook of hatchling. Editable installs have the checkout as it is.

Every file lies under `firstdraft`, so that no environment gets top-level packages with names like `config`:

- `firstdraft/_server`: the server's packages, unchanged. Its processes have this folder first on their path.
- `firstdraft/_schemas`: the messages that the client and the commands use. Imports of `schemas` in these files name it
  instead, as `pip` does with what it vendors: a client works beside any other package called `schemas`.

Where a process has both, no object passes from one copy of a message's class to the other: `firstdraft.local`, which
works with the server's packages, is given no message by the commands and gives them none to check.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SERVER_PACKAGES = ("broker", "config", "gateway", "quality", "schemas", "workers")
#: What is shipped besides Python source.
DATA = {".yaml", ".typed"}
#: An import of `schemas` at the beginning of a line; the second group is the module.
SCHEMAS_IMPORT = re.compile(r"^(\s*from )schemas\.(\w+)(?= import )", re.MULTILINE)


class WheelLayout(BuildHookInterface[Any]):
    """See the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling."""
        if version == "editable":
            return
        root = Path(self.root)
        files = {Path("firstdraft/_server/Procfile"): root / "Procfile"}
        for package in (*SERVER_PACKAGES, "firstdraft"):
            place = Path("firstdraft/_server") if package in SERVER_PACKAGES else Path()
            for path in sorted((root / package).rglob("*")):
                if path.suffix in {".py", *DATA}:
                    files[place / path.relative_to(root)] = path
        self._scratch = tempfile.TemporaryDirectory()
        for place, text in _client_files(root).items():
            files[place] = Path(self._scratch.name, *place.parts)
            files[place].parent.mkdir(parents=True, exist_ok=True)
            files[place].write_text(text, encoding="utf-8")
        build_data["force_include"].update({str(path): place.as_posix() for place, path in files.items()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """See hatchling."""
        if version != "editable":
            self._scratch.cleanup()


def _client_files(root: Path) -> dict[Path, str]:
    """Everything of `firstdraft` but `local`, and the messages that it needs, with imports rewritten."""
    sources = [path for path in (root / "firstdraft").rglob("*.py") if "local" not in path.parts]
    pending = {path.relative_to(root): path for path in sources}
    done: dict[Path, str] = {}
    while pending:
        place, path = pending.popitem()
        text = path.read_text(encoding="utf-8")
        for _, module in SCHEMAS_IMPORT.findall(text):
            needed = Path("firstdraft/_schemas", f"{module}.py")
            if needed not in done:
                pending[needed] = root / "schemas" / f"{module}.py"
        done[place] = SCHEMAS_IMPORT.sub(r"\1firstdraft._schemas.\2", text)
        if re.search(r"^\s*(from|import) schemas\b", done[place], re.MULTILINE):
            raise ValueError(f"{path}: write every import of schemas as `from schemas.MODULE import …`")
    return done | {Path("firstdraft/_schemas/__init__.py"): '"""The messages that a client uses."""\n'}
