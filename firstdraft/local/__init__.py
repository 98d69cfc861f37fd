"""The server on one machine: the embedded Redis, the processes, the models. Needs the server's packages.

In a checkout these (broker, config, gateway, schemas, workers) are found like any others. An installed wheel has them
in `firstdraft/_server`, so that no environment gets top-level packages with names like `config`; only processes that
import this package, or that it starts, have that folder on their path.
"""

import sys
from pathlib import Path

_SERVER_PACKAGES = Path(__file__).parents[1] / "_server"
if _SERVER_PACKAGES.is_dir() and str(_SERVER_PACKAGES) not in sys.path:
    sys.path.insert(0, str(_SERVER_PACKAGES))
