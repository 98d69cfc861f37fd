"""The environment of the processes that we start."""

import os
import sys
from pathlib import Path


def child_environment(**changes: str) -> dict[str, str]:
    """Our own environment with these changes. Our own Python comes first on PATH, our packages on PYTHONPATH."""
    python, packages = Path(sys.executable).parent, Path(__file__).parents[1]
    path = os.pathsep.join([str(python), os.environ.get("PATH", os.defpath)])
    python_path = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PATH": path, "PYTHONPATH": python_path, **changes}
