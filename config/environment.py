"""The environment that we give to the processes that we start."""

import os
import sys
from pathlib import Path


def child_environment(**changes: str) -> dict[str, str]:
    """Our own environment with these changes, and with our own Python first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, **changes}
