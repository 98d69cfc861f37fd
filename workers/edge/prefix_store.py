"""Parked prefixes on disk, so that a restarted worker is warm.

Owns a folder: a file for each segment (`workers.edge.prefix_offload`) and a manifest that says what they belong to.
Files of another model, another llama.cpp build or another layout are never loaded, and what was saved for a cache
namespace comes back for that one alone. The manifest is replaced last, so that a crash while saving leaves the former
one. Files that are not ours are left alone.
"""

import hashlib
import json
import logging
import secrets
import struct
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, Field, ValidationError

from workers.edge.prefix_offload import OffloadedPrefixes, Segment

log = logging.getLogger(__name__)

#: Name of the file that says what the others are.
MANIFEST = "manifest.json"
#: How the names of the other files end.
STATE_SUFFIX = ".prefix"
#: What each of those begins with: where the segment starts, and how many tokens there are up to its end. These follow,
#: 32 bits each, and then the state.
HEADER = struct.Struct("<II")
#: Bytes at each end of the model file that, with its size, tell it from others.
PROBE_BYTES = 1 << 20


class Origin(Protocol):
    """What a state depends on (`workers.edge.llama.Llama`)."""

    @property
    def path(self) -> Path:
        """The model's file."""

    @property
    def build(self) -> str:
        """Everything besides the model."""


class _Saved(BaseModel):
    #: A name that `save` gives, and never a way out of the folder.
    file: str = Field(pattern=r"^[0-9a-f]{16}\.prefix$")
    #: Whose it is. Saves from before there were namespaces lack it, and are not loaded: nobody knows whose those are.
    namespace: str
    #: Of the namespace and the file's content: llama.cpp believes what it reads, and answers with it.
    digest: str


class _Manifest(BaseModel):
    model: str
    build: str
    #: Least recently used first; each before those that it rests on.
    segments: list[_Saved]


class PrefixStore:
    """The folder. It is made when something is saved."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        self._folder, self._origin = folder, origin

    def save(self, parked: OffloadedPrefixes) -> int:
        """Save these in place of those saved before; how many segments. Blocks. Raises `OSError`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        saved = []
        for segment in parked:
            name = secrets.token_hex(8) + STATE_SUFFIX
            raw = _packed(segment, parked.tokens_of(segment))
            (self._folder / name).write_bytes(raw)
            namespace = parked.namespace_of(segment)
            saved.append(_Saved(file=name, namespace=namespace, digest=_digest(namespace, raw)))
        manifest = _Manifest(model=fingerprint(self._origin.path), build=self._origin.build, segments=saved)
        fresh = self._folder / (MANIFEST + ".new")
        fresh.write_text(manifest.model_dump_json(), encoding="utf-8")
        fresh.replace(self._folder / MANIFEST)
        self._drop_all_but({entry.file for entry in saved})
        log.info("prefixes_saved folder=%s segments=%d", self._folder, len(saved))
        return len(saved)

    def load(self, parked: OffloadedPrefixes) -> int:
        """Take what fits into an empty one, the most recently used first; how many segments. Blocks.

        What is missing, damaged or not ours is left out with a warning, whatever is in the folder, and so is what
        rests on it.
        """
        manifest = self._read_manifest()
        loaded = []
        for entry in reversed(manifest.segments if manifest else []):
            raw = self._read(entry)
            if raw is None:
                continue
            start, tokens, state = _unpacked(raw)
            if parked.put(entry.namespace, start, tokens, state):
                loaded.append((entry.namespace, tokens))
        for namespace, tokens in reversed(loaded):
            parked.find(namespace, tokens)  # which makes it the most recently used
        log.info("prefixes_loaded folder=%s segments=%d", self._folder, len(loaded))
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
        ours = {"model": fingerprint(self._origin.path), "build": self._origin.build}
        theirs = {"model": manifest.model, "build": manifest.build}
        if ours != theirs:
            log.warning(
                "prefixes_ignored folder=%s saved=%s running=%s", self._folder, json.dumps(theirs), json.dumps(ours)
            )
            return None
        return manifest

    def _read(self, entry: _Saved) -> bytes | None:
        """The file's content as it was saved, or None."""
        try:
            raw = (self._folder / entry.file).read_bytes()
        except OSError as error:
            log.warning("prefix_ignored folder=%s file=%s reason=%r", self._folder, entry.file, str(error))
            return None
        if _digest(entry.namespace, raw) != entry.digest:
            log.warning("prefix_ignored folder=%s file=%s reason=%r", self._folder, entry.file, "it is damaged")
            return None
        return raw

    def _drop_all_but(self, kept: set[str]) -> None:
        for path in self._folder.glob("*" + STATE_SUFFIX):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _packed(segment: Segment, tokens: tuple[int, ...]) -> bytes:
    return HEADER.pack(segment.start, len(tokens)) + struct.pack(f"<{len(tokens)}i", *tokens) + segment.state


def _unpacked(raw: bytes) -> tuple[int, tuple[int, ...], bytearray]:
    """What `_packed` was given, which the digest vouches for: start, all tokens, state."""
    start, num = HEADER.unpack_from(raw)
    tokens = struct.unpack_from(f"<{num}i", raw, HEADER.size)
    return start, tokens, bytearray(raw[HEADER.size + 4 * num :])


def _digest(namespace: str, raw: bytes) -> str:
    """Hex digits of a whole file's content and whose it is."""
    digest = hashlib.blake2b(namespace.encode(errors="surrogatepass") + b"\xff")
    digest.update(raw)
    return digest.hexdigest()


def fingerprint(model: Path) -> str:
    """Hex digits that tell the model's file from others: of its size and of its two ends."""
    size = model.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with model.open("rb") as file:
        digest.update(file.read(PROBE_BYTES))
        file.seek(max(0, size - PROBE_BYTES))
        digest.update(file.read(PROBE_BYTES))
    return digest.hexdigest()
