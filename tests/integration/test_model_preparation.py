"""Models as they are really made: the edge's from the package, and a small one expanded."""

from pathlib import Path

import pytest

from config.settings import read_settings
from firstdraft.local.model_store import ModelStoreError, _make, prepare_edge_model
from workers.runtime.model_paths import edge_model_path


def test_the_edges_model_is_made_of_the_packaged_one_and_found_by_its_name(tmp_path: Path) -> None:
    settings = read_settings(models={"cache_path": tmp_path}, edge={"model": {"path": "demo"}})
    path = prepare_edge_model(settings)
    assert edge_model_path(settings) == path
    assert path.read_bytes()[:4] == b"GGUF"
    assert prepare_edge_model(settings) == path


def test_what_cannot_be_made_says_why(tmp_path: Path) -> None:
    source = tmp_path / "no-model.gguf"
    source.write_bytes(b"nothing")
    with pytest.raises(ModelStoreError, match=r"making target\.gguf failed"):
        _make("quantize", source, tmp_path / "target.gguf")
