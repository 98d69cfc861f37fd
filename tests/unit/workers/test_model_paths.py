from pathlib import Path

import pytest

from config.settings import InvalidSettings, Settings, read_settings
from workers.runtime.model_paths import cloud_model_path, cost_factor, edge_model_path, prepared_cloud_model


def settings(folder: Path, *, edge: str = "demo", cloud: str = "demo") -> Settings:
    return read_settings(
        models={"cache_path": folder}, edge={"model": {"path": edge}}, cloud={"model": {"path": cloud}}
    )


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("demo", 1),
        ("demo-6x", 6),
        ("demo-12x", 12),
        ("demo-1x", None),
        ("demo-0x", None),
        ("demo-x", None),
        ("x", None),
    ],
)
def test_the_name_of_a_scaled_model_tells_its_cost(name: str, factor: int | None) -> None:
    assert cost_factor(name) == factor


def test_a_demo_model_that_is_not_prepared_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"edge\.model\.path.*firstdraft models prepare"):
        edge_model_path(settings(tmp_path))
    with pytest.raises(InvalidSettings, match=r"cloud\.model\.path.*firstdraft models prepare demo-6x"):
        cloud_model_path(settings(tmp_path, cloud="demo-6x"))


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"edge\.model\.path is '/nowhere/model.gguf'"):
        edge_model_path(settings(tmp_path, edge="/nowhere/model.gguf"))
    with pytest.raises(InvalidSettings, match=r"cloud\.model\.path is '/nowhere/model'"):
        cloud_model_path(settings(tmp_path, cloud="/nowhere/model"))


def test_ones_own_files_and_the_names_of_a_hub_are_taken_as_they_are(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.touch()
    assert edge_model_path(settings(tmp_path, edge=str(own))) == own
    assert cloud_model_path(settings(tmp_path, cloud=str(tmp_path))) == str(tmp_path)
    assert cloud_model_path(settings(tmp_path, cloud="owner/model-7B")) == "owner/model-7B"


def test_scaled_models_do_not_share_a_folder(tmp_path: Path) -> None:
    given = settings(tmp_path)
    assert len({prepared_cloud_model(given, name) for name in ("demo", "demo-2x", "demo-6x")}) == 3
