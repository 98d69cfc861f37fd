"""llama.cpp: the model, its vocabulary and its KV cells. The only module that imports `llama_cpp`.

Owns every C handle and frees it. Knows nothing about requests, scheduling, caching or confidence. Only one thread at a
time may call `decode` or a method that touches KV cells; the vocabulary may be read from any thread.
"""

import ctypes
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
import numpy.typing as npt
from llguidance import LLTokenizer

from config.settings import EdgeSettings
from workers.edge.step_batch import StepBatch, TokenChunk
from workers.runtime.control_tokens import AddedToken
from workers.runtime.failures import BeyondModel

log = logging.getLogger(__name__)

#: What every GGUF file begins with.
GGUF_MAGIC = b"GGUF"
#: llama.cpp's log level for errors; lower levels only report how loading goes.
LOG_LEVEL_ERROR = 4
#: What `llama_decode` returns if too few cells are free.
NO_CELLS = 1
#: The most prompt tokens in one forward pass; a larger step is cut into several.
MAX_PASS_TOKENS = 512
#: Buffer for a token's text, in bytes; a longer text is read again into a buffer of its size.
PIECE_BYTES = 64
#: What a control token's name begins with for llguidance.
CONTROL_MARK = b"\xff"
#: Buffer for a value of the GGUF file's metadata, in bytes.
METADATA_BYTES = 1024

Logits = npt.NDArray[np.float32]


class UnusableModel(Exception):
    """The model file cannot serve: it is missing, no GGUF file, or no text generation model."""


class CellsExhausted(Exception):
    """The tokens of a step do not fit into the KV cache; nothing was computed."""


@llama.llama_log_callback  # type: ignore[untyped-decorator] # ctypes
def _log_errors(level: int, text: bytes, _data: object) -> None:
    if level == LOG_LEVEL_ERROR:
        log.error("llama_cpp_complained text=%r", text.decode(errors="replace").strip())


class Llama:
    """One model with one context: a pool of KV cells, one per token, for sequence ids 0 to `num_sequences` - 1.

    Raises `UnusableModel` if it cannot be loaded.
    """

    def __init__(self, path: Path, settings: EdgeSettings) -> None:
        llama.llama_log_set(_log_errors, ctypes.c_void_p(0))
        self.path = path
        self.num_sequences = settings.max_in_flight + 1  # the prefix cache's scratch sequence
        self._model = _load(path, settings.model.gpu_layers)
        self._context: Any = None
        if llama.llama_model_has_encoder(self._model) or not llama.llama_model_has_decoder(self._model):
            self.close()
            raise UnusableModel(f"{path} is an encoder; the edge needs a model that writes on from its prompt")
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.vocab_size: int = llama.llama_vocab_n_tokens(self._vocab)
        self.trained_context: int = llama.llama_model_n_ctx_train(self._model)
        self.name = self._metadata("general.name") or path.stem
        template = llama.llama_model_chat_template(self._model, None)
        self.chat_template: str | None = template.decode() if template else None
        #: Whether sequences can share a prefix; models with a recurrent state cannot.
        self.shares_prefixes = not (
            llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model)
        )
        self._context = self._new_context(settings)
        self._memory = llama.llama_get_memory(self._context)
        self._batch = StepBatch(llama.llama_batch(), settings.step_tokens)
        self._rows: tuple[int, Logits] | None = None
        self._pieces: dict[int, bytes] = {}
        self._labels: dict[int, str] = {}

    def _new_context(self, settings: EdgeSettings) -> Any:
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = settings.max_in_flight_tokens, self.num_sequences
        params.n_batch = settings.step_tokens
        params.n_ubatch = min(settings.step_tokens, MAX_PASS_TOKENS)
        # Fewer rows of logits than n_batch save memory; llama.cpp aborts if there is not one per sequence.
        params.n_outputs_max = self.num_sequences
        params.n_threads = params.n_threads_batch = settings.model.threads or len(os.sched_getaffinity(0))
        params.kv_unified = True
        params.swa_full = True  # sequences of a sliding-window model can only share a prefix that is kept whole
        params.no_perf = True
        context = llama.llama_init_from_model(self._model, params)
        if not context:
            self.close()
            raise UnusableModel(f"llama.cpp cannot make a context for {self.path} with {params.n_ctx} KV cells")
        return context

    def close(self) -> None:
        """Free the model and the context. Idempotent; nothing else may be called afterwards."""
        if self._context:
            llama.llama_free(self._context)
        if self._model:
            llama.llama_model_free(self._model)
        self._context = self._model = None

    @property
    def cells(self) -> int:
        """The actual number of KV cells: llama.cpp rounds up the number asked for."""
        return int(llama.llama_n_ctx(self._context))

    @property
    def build(self) -> str:
        """What saved KV states depend on besides the model: the versions of llama.cpp and its binding."""
        return f"llama-cpp-python {llama.__version__}, llama.cpp {llama.llama_version().decode()}"

    # Vocabulary

    def token_texts(self) -> Iterator[str]:
        """Each token as the vocabulary spells it, in the order of ids."""
        for token in range(self.vocab_size):
            yield llama.llama_vocab_get_text(self._vocab, token).decode(errors="surrogateescape")

    def added_tokens(self) -> Iterator[AddedToken]:
        """The tokens that llama.cpp matches in a text before it tokenizes the rest: control and user-defined ones."""
        control = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
        for token, text in enumerate(self.token_texts()):
            attributes = llama.llama_vocab_get_attr(self._vocab, token)
            if attributes & (control | llama.LLAMA_TOKEN_ATTR_USER_DEFINED):
                yield AddedToken(
                    text=text,
                    token_id=token,
                    is_control=bool(attributes & control),
                    strips_left=bool(attributes & llama.LLAMA_TOKEN_ATTR_LSTRIP),
                    strips_right=bool(attributes & llama.LLAMA_TOKEN_ATTR_RSTRIP),
                )

    def rendered_tokens(self, rendered: str) -> list[int]:
        """Token ids of a rendered prompt. Control tokens are recognised; a begin-of-text token is never doubled."""
        add_special = not (self.bos_text and rendered.startswith(self.bos_text))
        return self._tokenize(rendered, add_special=add_special, parse_special=True)

    def text_tokens(self, text: str) -> list[int]:
        """Token ids of a plain text: whatever in it looks like a control token stays text."""
        return self._tokenize(text, add_special=False, parse_special=False)

    @property
    def first_token(self) -> int | None:
        """The begin-of-text token, if this vocabulary's prompts begin with it."""
        return llama.llama_vocab_bos(self._vocab) if llama.llama_vocab_get_add_bos(self._vocab) else None

    def _tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode()
        room = (llama.llama_token * (len(raw) + 8))()
        count = llama.llama_tokenize(self._vocab, raw, len(raw), room, len(room), add_special, parse_special)
        return list(room[:count])

    @property
    def bos_text(self) -> str:
        """The begin-of-text token as a template writes it; empty if there is none."""
        return self._control_text(llama.llama_vocab_bos(self._vocab))

    @property
    def eos_text(self) -> str:
        """The end-of-text token as a template writes it; empty if there is none."""
        return self._control_text(llama.llama_vocab_eos(self._vocab))

    def _control_text(self, token: int) -> str:
        return "" if token < 0 else self._read_piece(token, special=True).decode(errors="replace")

    def ends_text(self, token: int) -> bool:
        """Whether the model ends its text with this token."""
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def piece(self, token: int) -> bytes:
        """The bytes that the token adds to an answer, perhaps only a part of a character; none for a control token."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._read_piece(token, special=False)
        return known

    def label(self, token: int) -> str:
        """The token as text for people, control tokens included."""
        known = self._labels.get(token)
        if known is None:
            known = self._labels[token] = self._read_piece(token, special=True).decode(errors="replace")
        return known

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        room = ctypes.create_string_buffer(PIECE_BYTES)
        size = llama.llama_token_to_piece(self._vocab, token, room, len(room), 0, special)
        if size < 0:
            room = ctypes.create_string_buffer(-size)
            size = llama.llama_token_to_piece(self._vocab, token, room, len(room), 0, special)
        return room.raw[:size]

    def _metadata(self, key: str) -> str | None:
        room = ctypes.create_string_buffer(METADATA_BYTES)
        size = llama.llama_model_meta_val_str(self._model, key.encode(), room, len(room))
        return room.value.decode(errors="replace") if size > 0 else None

    def constraint_tokenizer(self) -> LLTokenizer:
        """The vocabulary for llguidance. Blocks for half a second. The tokenizer must not outlive the model."""
        ends = [token for token in range(self.vocab_size) if self.ends_text(token)]
        if not ends:
            raise BeyondModel("grammar: the model has no token that ends a text")
        # `llguidance.llamacpp` does the same, but calls functions that llama-cpp-python has renamed.
        tokenizer: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined] # its stub lacks it
            tokens=[self._named(token) for token in range(self.vocab_size)],
            vocab_ptr=self._vocab,
            tokenize_fptr=ctypes.cast(llama.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value,  # noqa: SLF001
            eos_token=ends,
            slices=None,
        )
        return tokenizer

    def _named(self, token: int) -> bytes:
        """A token's bytes for llguidance: a control token's name begins with a byte that no text has."""
        name = self._read_piece(token, special=True)
        attributes = llama.llama_vocab_get_attr(self._vocab, token)
        bracketed = name.startswith(b"<") and name.endswith(b">")
        is_control = attributes & llama.LLAMA_TOKEN_ATTR_CONTROL
        is_control |= attributes & llama.LLAMA_TOKEN_ATTR_USER_DEFINED and bracketed
        return CONTROL_MARK + name if is_control else name

    # One step

    def decode(self, chunks: Sequence[TokenChunk]) -> Logits:
        """Run one step; blocks without holding the GIL.

        Returns a row of raw logits for each chunk that wants one, in order: a view that the next call overwrites.
        Raises `CellsExhausted` if the tokens do not fit, having changed nothing, and `RuntimeError` if llama.cpp fails.
        """
        outputs = self._batch.fill(chunks)
        code = llama.llama_decode(self._context, self._batch.handle)
        if code == NO_CELLS:
            raise CellsExhausted(f"{self._batch.handle.n_tokens} tokens do not fit into the KV cache")
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code} for {self._batch.handle.n_tokens} tokens")
        return self._logits()[:outputs]

    def _logits(self) -> Logits:
        pointer = llama.llama_get_logits(self._context)
        address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        if self._rows is None or self._rows[0] != address:
            shape = (self.num_sequences, self.vocab_size)
            self._rows = (address, np.ctypeslib.as_array(pointer, shape=shape))
        return self._rows[1]

    # KV cells

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let sequence `target` share the cells of `source` at positions [start, end)."""
        llama.llama_memory_seq_cp(self._memory, source, target, start, end)

    def remove(self, sequence_id: int, start: int = 0, end: int = -1) -> None:
        """Take the sequence out of its cells at positions [start, end), by default all. A cell of none is free."""
        llama.llama_memory_seq_rm(self._memory, sequence_id, start, end)

    def state(self, sequence_id: int) -> bytearray:
        """A copy of the sequence's cells, for a context of the same model and build; empty if llama.cpp gives none."""
        state = bytearray(llama.llama_state_seq_get_size(self._context, sequence_id))
        memory = (ctypes.c_uint8 * len(state)).from_buffer(state)
        return state if llama.llama_state_seq_get_data(self._context, memory, len(state), sequence_id) else bytearray()

    def restore(self, sequence_id: int, state: bytearray) -> bool:
        """Fill an empty sequence from `state`. Returns False, leaving it empty, if there is no room."""
        memory = (ctypes.c_uint8 * len(state)).from_buffer(state)
        return bool(llama.llama_state_seq_set_data(self._context, memory, len(state), sequence_id))


def quantize(source: Path, target: Path) -> None:
    """Write `source` (a GGUF file) as Q4_0, which llama.cpp repacks for the CPU's vector units at load.

    Raises `UnusableModel` if llama.cpp refuses.
    """
    params = llama.llama_model_quantize_default_params()
    params.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True
    if llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise UnusableModel(f"llama.cpp cannot quantize {source}")


def _load(path: Path, gpu_layers: int) -> Any:
    if not path.is_file():
        raise UnusableModel(f"edge.model.path is {path}, which is not a file; `firstdraft models` lists what there is")
    with path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise UnusableModel(f"edge.model.path is {path}, which is not a GGUF file (it begins with {magic!r})")
    params = llama.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise UnusableModel(f"llama.cpp cannot load {path}; its own message is logged above")
    return model
