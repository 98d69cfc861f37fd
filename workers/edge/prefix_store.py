"""Offloaded prefixes on disk, so that a restarted worker starts with a warm cache.

Owns a folder: a file for each segment (`workers.edge.prefix_offload`), and a manifest of them. Files of another model,
another llama.cpp build or another format are never loaded, and what was saved for a cache namespace is loaded for that
one alone. The manifest is replaced last, so that a crash during a save leaves the previous one. Other files in the
folder are left alone.
"""

import hashlib
import logging
import secrets
import struct
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from workers.edge.prefix_offload import OffloadedPrefixes, Segment

log = logging.getLogger(__name__)

#: Name of the file that lists the others.
MANIFEST = "manifest.json"
#: How the names of the other files end.
STATE_SUFFIX = ".prefix"
#: What each of those begins with: the segment's start, and the number of tokens of the prefix that it ends. The tokens
#: follow, 32 bits each, and then the state.
HEADER = struct.Struct("<II")
#: Bytes read from each end of the model file for its fingerprint.
PROBE_BYTES = 1 << 20


class _SavedSegment(BaseModel):
    #: A name that `save` gives, and never a path out of the folder.
    file: str = Field(pattern=r"^[0-9a-f]{16}\.prefix$")
    #: Saves from before there were namespaces lack it, and are not loaded: nobody knows whose those are.
    namespace: str
    #: Of the namespace and the file's content: llama.cpp trusts whatever state it is given.
    digest: str


class _Manifest(BaseModel):
    model: str
    build: str
    #: Least recently used first; each before its parent.
    segments: list[_SavedSegment]


class PrefixStore:
    """The folder, which is made by the first save. States depend on the model's file and on `build`."""

    def __init__(self, folder: Path, model_path: Path, build: str) -> None:
        self._folder, self._model_path, self._build = folder, model_path, build

    def save(self, offloaded: OffloadedPrefixes) -> int:
        """Replace what was saved before; returns the number of segments. Blocks. Raises `OSError`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        saved = []
        for segment in offloaded:
            name = secrets.token_hex(8) + STATE_SUFFIX
            raw = _packed(segment, offloaded.tokens_of(segment))
            (self._folder / name).write_bytes(raw)
            namespace = offloaded.namespace_of(segment)
            saved.append(_SavedSegment(file=name, namespace=namespace, digest=_digest(namespace, raw)))
        manifest = _Manifest(model=fingerprint(self._model_path), build=self._build, segments=saved)
        fresh = self._folder / (MANIFEST + ".new")
        fresh.write_text(manifest.model_dump_json(), encoding="utf-8")
        fresh.replace(self._folder / MANIFEST)
        kept = {entry.file for entry in saved}
        for path in self._folder.glob("*" + STATE_SUFFIX):
            if path.name not in kept:
                path.unlink(missing_ok=True)
        log.info("prefixes_saved folder=%s segments=%d", self._folder, len(saved))
        return len(saved)

    def load(self, offloaded: OffloadedPrefixes) -> int:
        """Fill an empty `offloaded`, the most recently used first; returns the number of segments. Blocks.

        Whatever the folder holds, this does not raise: a segment that is missing, damaged or foreign is left out with
        a warning, and so are those that continue it.
        """
        loaded = []
        for entry in reversed(self._saved_segments()):
            raw = self._read(entry)
            if raw is None:
                continue
            start, tokens, state = _unpacked(raw)
            if offloaded.load(entry.namespace, start, tokens, state):
                loaded.append((entry.namespace, tokens))
        for namespace, tokens in reversed(loaded):
            offloaded.find(namespace, tokens)  # which makes it the most recently used
        log.info("prefixes_loaded folder=%s segments=%d", self._folder, len(loaded))
        return len(loaded)

    def _saved_segments(self) -> list[_SavedSegment]:
        """The manifest's entries; none if it is missing, unreadable or of another model or build."""
        path = self._folder / MANIFEST
        try:
            if not path.is_file():
                return []
            manifest = _Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("prefixes_ignored folder=%s reason=%r", self._folder, f"unreadable manifest: {error}")
            return []
        running, saved = (fingerprint(self._model_path), self._build), (manifest.model, manifest.build)
        if running != saved:
            log.warning("prefixes_ignored folder=%s saved=%s running=%s", self._folder, saved, running)
            return []
        return manifest.segments

    def _read(self, entry: _SavedSegment) -> bytes | None:
        """The file's content as it was saved; None, with a warning, if it is missing or damaged."""
        reason = "it is damaged"
        try:
            raw = (self._folder / entry.file).read_bytes()
            if _digest(entry.namespace, raw) == entry.digest:
                return raw
        except OSError as error:
            reason = str(error)
        log.warning("prefix_ignored folder=%s file=%s reason=%r", self._folder, entry.file, reason)
        return None


def _packed(segment: Segment, tokens: tuple[int, ...]) -> bytes:
    return HEADER.pack(segment.start, len(tokens)) + struct.pack(f"<{len(tokens)}i", *tokens) + segment.state


def _unpacked(raw: bytes) -> tuple[int, tuple[int, ...], bytearray]:
    """The inverse of `_packed`: start, tokens of the prefix, state. `raw` must have matched its digest."""
    start, num = HEADER.unpack_from(raw)
    tokens = struct.unpack_from(f"<{num}i", raw, HEADER.size)
    return start, tokens, bytearray(raw[HEADER.size + 4 * num :])


def _digest(namespace: str, raw: bytes) -> str:
    """Hex digest of a file's namespace and content."""
    digest = hashlib.blake2b(namespace.encode(errors="surrogatepass") + b"\xff")
    digest.update(raw)
    return digest.hexdigest()


def fingerprint(model: Path) -> str:
    """Hex digest that identifies the model file, of its size and both its ends."""
    size = model.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with model.open("rb") as file:
        digest.update(file.read(PROBE_BYTES))
        file.seek(max(0, size - PROBE_BYTES))
        digest.update(file.read(PROBE_BYTES))
    return digest.hexdigest()
