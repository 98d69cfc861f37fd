from pathlib import Path
from threading import Barrier, Thread

import pytest

from config.settings import Settings, read_settings
from firstdraft.local.model_store import (
    SCRATCH_PREFIX,
    ModelStoreError,
    _making,
    list_models,
    prepare_cloud_model,
    prepare_configured_models,
    prepare_edge_model,
)
from tests.polling import joined
from workers.runtime.model_paths import model_folder, prepared_cloud_model, prepared_edge_model


@pytest.fixture
def stored(tmp_path: Path) -> Settings:
    return read_settings(models={"cache_path": tmp_path / "models"})


def make(settings: Settings, target: Path, content: str = "whole") -> bool:
    """Make a one-file model; whether it had to be made."""
    with _making(settings, target) as scratch:
        if scratch is not None:
            scratch.write_text(content)
        return scratch is not None


def test_a_model_is_made_once(stored: Settings) -> None:
    target = prepared_edge_model(stored)
    assert make(stored, target)
    assert not make(stored, target, "again")
    assert target.read_text() == "whole"
    assert prepare_edge_model(stored) == target


def test_what_fails_half_way_leaves_nothing(stored: Settings) -> None:
    target = prepared_edge_model(stored)
    with pytest.raises(UnicodeEncodeError):
        make(stored, target, "half \udfff")
    assert not target.exists()
    assert list(model_folder(stored).glob(f"{SCRATCH_PREFIX}*")) == []


def test_what_a_killed_process_left_half_made_is_removed(stored: Settings) -> None:
    left = model_folder(stored) / f"{SCRATCH_PREFIX}left"
    left.mkdir(parents=True)
    (left / "half").touch()
    assert make(stored, prepared_edge_model(stored))
    assert not left.exists()


def test_two_at_once_make_it_once(stored: Settings) -> None:
    target = prepared_edge_model(stored)
    together = Barrier(2)
    made: list[bool] = []

    def one() -> None:
        together.wait(10)
        made.append(make(stored, target))

    threads = [Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        joined(thread)
    assert sorted(made) == [False, True]


def test_a_folder_that_cannot_be_written_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = read_settings(models={"cache_path": tmp_path / "file" / "models"})
    with pytest.raises(ModelStoreError, match=r"file/models.*models\.cache_path"):
        make(settings, prepared_edge_model(settings))


@pytest.mark.parametrize("name", ["demo-1x", "demo-100x", "demo-x", "large", ""])
def test_a_name_that_cannot_be_prepared_is_refused_with_those_that_can(stored: Settings, name: str) -> None:
    with pytest.raises(ModelStoreError, match=rf"{name}.*demo-Nx"):
        prepare_cloud_model(stored, name)


def test_the_list_has_what_can_be_prepared_what_is_and_what_the_settings_name(tmp_path: Path) -> None:
    settings = read_settings(models={"cache_path": tmp_path}, cloud={"model": {"path": "demo-12x"}})
    folder = prepared_cloud_model(settings, "demo-2x")
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"12345")
    prepared_cloud_model(settings, "demo-nonsense").mkdir()
    found = [(model.tier, model.name, model.prepared, model.size_bytes) for model in list_models(settings)]
    assert found == [
        ("edge", "demo", False, 0),
        ("cloud", "demo", False, 0),
        ("cloud", "demo-2x", True, 5),
        ("cloud", "demo-6x", False, 0),
        ("cloud", "demo-12x", False, 0),
    ]


def test_nothing_is_made_for_models_of_ones_own(tmp_path: Path) -> None:
    settings = read_settings(
        models={"cache_path": tmp_path / "models"},
        edge={"model": {"path": "own.gguf"}},
        cloud={"model": {"path": "owner/model"}},
    )
    said: list[str] = []
    prepare_configured_models(settings, said.append)
    assert said == []
    assert not (tmp_path / "models").exists()
