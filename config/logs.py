"""How every process logs: one line per event, in the past tense, with its fields as key=value."""

import logging


def configure_logs(level: str) -> None:
    """Log to standard error at this level; libraries only warnings and above."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    for package in ("broker", "firstdraft", "gateway", "workers"):
        logging.getLogger(package).setLevel(level)
