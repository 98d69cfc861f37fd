"""Idle prefixes on disk, so that a restarted worker is warm.

Owns a folder: one llama.cpp state file a prefix and a manifest that says what they belong to. Files of another model,
another llama.cpp build or another layout are never loaded. The manifest is replaced last, so that a crash while saving
leaves the former one. Files that are not ours are left alone.
"""

import hashlib
import json
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, Field, ValidationError

from workers.edge.prefix_cache import PrefixCache

log = logging.getLogger(__name__)

#: Name of the file that says what the others are.
MANIFEST = "manifest.json"
#: How the names of our state files end.
STATE_SUFFIX = ".prefix"
#: Bytes at each end of the model file that, with its size, tell it from others.
PROBE_BYTES = 1 << 20


class StateFiles(Protocol):
    """What can write and read the cells of a sequence (`workers.edge.llama.Llama`)."""

    @property
    def path(self) -> Path:
        """The model's file."""

    @property
    def build(self) -> str:
        """What a state depends on besides the model."""

    def save(self, sequence: int, tokens: Sequence[int], path: Path) -> bool:
        """Write the sequence's cells and tokens to a file; whether that worked."""

    def load(self, sequence: int, path: Path) -> tuple[int, ...]:
        """Read them into an empty sequence; its tokens, or none if the file does not fit."""


class _Saved(BaseModel):
    #: A name that `save` gives, and never a way out of the folder.
    file: str = Field(pattern=r"^[0-9a-f]{16}\.prefix$")
    num_tokens: int = Field(gt=0)
    #: Of the file's content: llama.cpp believes what it reads, and answers with it.
    digest: str


class _Manifest(BaseModel):
    model: str
    build: str
    #: Least recently used first.
    prefixes: list[_Saved]


class PrefixStore:
    """The folder. It is made when something is saved."""

    def __init__(self, folder: Path, states: StateFiles) -> None:
        self._folder, self._states = folder, states

    def save(self, cache: PrefixCache) -> int:
        """Save the cache's idle prefixes in place of those saved before; how many. Blocks. Raises `OSError`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        saved = []
        for sequence in cache.idle:
            tokens = cache.tokens_of(sequence)
            name = secrets.token_hex(8) + STATE_SUFFIX
            if self._states.save(sequence, tokens, self._folder / name):
                saved.append(_Saved(file=name, num_tokens=len(tokens), digest=_digest(self._folder / name)))
        manifest = _Manifest(model=fingerprint(self._states.path), build=self._states.build, prefixes=saved)
        fresh = self._folder / (MANIFEST + ".new")
        fresh.write_text(manifest.model_dump_json())
        fresh.replace(self._folder / MANIFEST)
        self._drop_all_but({entry.file for entry in saved})
        log.info("prefixes_saved folder=%s prefixes=%d", self._folder, len(saved))
        return len(saved)

    def load(self, cache: PrefixCache) -> int:
        """Load what fits into an empty cache, the most recently used first; how many prefixes. Blocks.

        What is missing, damaged or not ours is left out with a warning, whatever is in the folder.
        """
        manifest = self._read_manifest()
        loaded = []
        for entry in reversed(manifest.prefixes if manifest else []):
            # llama.cpp reads a prefix into cells of its own before what it shares with others is given back.
            if entry.num_tokens > cache.free_cells:
                break
            if not self._is_whole(entry):
                continue
            if (sequence := cache.take_for_loading()) is None:
                break
            tokens = self._states.load(sequence, self._folder / entry.file)
            cache.adopt(sequence, tokens)
            if tokens:
                loaded.append(sequence)
        for sequence in reversed(loaded):
            cache.touch(sequence)
        log.info("prefixes_loaded folder=%s prefixes=%d", self._folder, len(loaded))
        return len(loaded)

    def _read_manifest(self) -> _Manifest | None:
        path = self._folder / MANIFEST
        try:
            if not path.is_file():
                return None
            manifest = _Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("prefixes_ignored folder=%s reason=%r", self._folder, f"unreadable manifest: {error}")
            return None
        ours = {"model": fingerprint(self._states.path), "build": self._states.build}
        theirs = {"model": manifest.model, "build": manifest.build}
        if ours != theirs:
            log.warning(
                "prefixes_ignored folder=%s saved=%s running=%s", self._folder, json.dumps(theirs), json.dumps(ours)
            )
            return None
        return manifest

    def _is_whole(self, entry: _Saved) -> bool:
        try:
            is_whole = _digest(self._folder / entry.file) == entry.digest
        except OSError as error:
            log.warning("prefix_ignored folder=%s file=%s reason=%r", self._folder, entry.file, str(error))
            return False
        if not is_whole:
            log.warning("prefix_ignored folder=%s file=%s reason=%r", self._folder, entry.file, "it is damaged")
        return is_whole

    def _drop_all_but(self, kept: set[str]) -> None:
        for path in self._folder.glob("*" + STATE_SUFFIX):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    """Hex digits of the whole file's content. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def fingerprint(model: Path) -> str:
    """Hex digits that tell the model's file from others: of its size and of its two ends."""
    size = model.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with model.open("rb") as file:
        digest.update(file.read(PROBE_BYTES))
        file.seek(max(0, size - PROBE_BYTES))
        digest.update(file.read(PROBE_BYTES))
    return digest.hexdigest()
