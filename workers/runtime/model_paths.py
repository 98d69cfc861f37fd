"""From a model's name in the settings to the path that an engine loads.

`firstdraft models prepare` prepares models (firstdraft/local/model_store.py).
"""

import re
from pathlib import Path

from config.settings import InvalidSettings, Settings, cache_folder

#: The name of the prepared models. `demo-Nx` is a cloud model with the same answers at N times the cost per token.
DEMO = "demo"
#: The folder of exported cloud models. Increment its number when the export changes, so that models are exported again.
CLOUD_FOLDER = "cloud-2"
_SCALED = re.compile(r"demo-([2-9]|[1-9][0-9])x")
#: A name on a model hub: owner/model.
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def model_folder(settings: Settings) -> Path:
    """The folder of prepared models."""
    return settings.models.cache_path or cache_folder() / "models"


def cost_factor(name: str) -> int | None:
    """N of `demo-Nx`, 1 of `demo`, None of any other name."""
    if name == DEMO:
        return 1
    scaled = _SCALED.fullmatch(name)
    return int(scaled[1]) if scaled else None


def prepared_edge_model(settings: Settings) -> Path:
    """The path of the edge's demo model, which may not be prepared yet."""
    return model_folder(settings) / "edge" / "SmolLM2-135M-Instruct.Q4_0.gguf"


def prepared_cloud_model(settings: Settings, name: str) -> Path:
    """The path of a prepared cloud model, which may not be prepared yet."""
    suffix = name.removeprefix(DEMO)
    return model_folder(settings) / CLOUD_FOLDER / f"SmolLM2-135M-Instruct{suffix}"


def edge_model_path(settings: Settings) -> Path:
    """The GGUF file that `edge.model.path` means. Raises `InvalidSettings` if it does not exist."""
    named = settings.edge.model.path
    path = prepared_edge_model(settings) if named == DEMO else Path(named).expanduser()
    if path.is_file():
        return path
    if named == DEMO:
        raise InvalidSettings(f"edge.model.path is {named!r}, which is not prepared: run `firstdraft models prepare`")
    raise InvalidSettings(f"edge.model.path is {named!r}, which is not a file")


def cloud_model_path(settings: Settings) -> str:
    """What vLLM loads for `cloud.model.path`: a folder, or a name on a hub, unchanged. Raises `InvalidSettings`."""
    named = settings.cloud.model.path
    if cost_factor(named) is not None:
        path = prepared_cloud_model(settings, named)
        if not path.is_dir():
            command = f"firstdraft models prepare {named}"
            raise InvalidSettings(f"cloud.model.path is {named!r}, which is not prepared: run `{command}`")
        return str(path)
    path = Path(named).expanduser()
    if path.is_dir():
        return str(path)
    if _HUB_NAME.fullmatch(named):
        return named
    raise InvalidSettings(f"cloud.model.path is {named!r}, which is neither a folder nor a hub's owner/model")
