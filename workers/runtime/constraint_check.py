"""Whether an engine can handle a grammar: tried in a child process, where a crash or a gigabyte does no harm.

A grammar may be so deep that its compiler overflows the stack, so large that it takes all memory, or so ambiguous that
each token takes seconds. The child compiles the grammar and generates a few tokens with it, within limits on memory,
stack and CPU time. A child that died is replaced. One grammar is tried at a time.

`python -m workers.runtime.constraint_check DESCRIPTOR` is the child, with its end of a pipe.
"""

import hashlib
import logging
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NoReturn

import msgpack
from llguidance import LLMatcher, LLTokenizer

from config.environment import child_environment
from schemas.requests import Sampling
from workers.runtime.constraints import Vocabulary, lark_of, limits, reason_of, some_token
from workers.runtime.failures import BeyondModel

#: CPU seconds that trying a grammar may take.
MAX_CPU_S = 1.0
#: Seconds after which the child is killed in any case. More than the CPU seconds, since the machine may be busy.
MAX_WAIT_S = 10.0
#: The child's limit on address space, in bytes. It needs a third of that for itself and a large vocabulary.
MAX_BYTES = 1 << 30
#: Bytes of the stack on which the child compiles. An engine's threads have eight times as much.
STACK_BYTES = 1 << 20
#: Tokens that the child generates with a grammar: enough to detect one whose tokens take longer and longer.
TRIED_TOKENS = 64
#: CPU seconds that each of them may take. An engine would delay all its requests for as long.
MAX_TOKEN_S = 0.05
#: Seconds in which a child must be ready. It reads a vocabulary, on a machine that may be loading a model.
READY_S = 30.0
#: Cached verdicts, so that a repeated grammar costs nothing. They are separate for each cache namespace: otherwise the
#: time of a check would reveal that another owner has sent the same grammar.
MAX_REMEMBERED = 512

log = logging.getLogger(__name__)


class UnfitGrammar(ValueError):
    """The grammar must not be given to an engine; the message says why."""


class GrammarChecker:
    """Checks the grammars of one model's requests. Thread-safe. Calls `make_tokenizer` at the first grammar."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._make_tokenizer = make_tokenizer
        self._lock = threading.Lock()
        self._made: tuple[LLTokenizer, ConstraintCheck] | None = None

    def grammar_of(self, sampling: Sampling, namespace: str) -> tuple[str, LLTokenizer] | None:
        """The checked grammar that the answer must match, and the model's tokenizer; None without a grammar.

        Raises `BeyondModel`. Blocks for milliseconds, or about a second for the first grammar and for a refused one.
        """
        try:
            lark = lark_of(sampling)
            if lark is None:
                return None
            with self._lock:
                if self._made is None:
                    tokenizer = self._make_tokenizer()
                    self._made = (tokenizer, ConstraintCheck(Vocabulary.of(tokenizer)))
                tokenizer, check = self._made
            check.check(lark, namespace)
        except ValueError as error:
            option = "grammar" if sampling.json_schema is None else "json_schema"
            raise BeyondModel(f"{option}: {error}") from error
        return lark, tokenizer

    def close(self) -> None:
        """End the child process. Idempotent."""
        with self._lock:
            if self._made is not None:
                self._made[1].close()


class ConstraintCheck:
    """The child, which is started at the first grammar, and a cache of its verdicts. Safe on any thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = msgpack.packb([list(vocabulary.tokens), list(vocabulary.special), list(vocabulary.ends)])
        self._child: _Child | None = None
        #: One lock for the child and one for the cache, so that a cached verdict does not wait for a running check.
        self._trying, self._looking = threading.Lock(), threading.Lock()
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()
        self._closed = False

    def check(self, lark: str, namespace: str) -> None:
        """Raise `UnfitGrammar` unless an engine can handle the grammar. Blocks for a millisecond to a second."""
        digest = hashlib.sha256(namespace.encode() + b"\xff" + lark.encode()).digest()
        verdict = self._remembered(digest)
        if verdict is None:
            with self._trying:
                verdict = self._remembered(digest)  # it may have been tried meanwhile
                if verdict is None:
                    verdict = self._try(lark)
                    self._remember(digest, verdict)
        if verdict:
            raise UnfitGrammar(verdict)

    def close(self) -> None:
        """End the child. Idempotent."""
        with self._trying:
            self._closed = True
            if self._child is not None:
                self._child.kill()
            self._child = None

    def _remembered(self, digest: bytes) -> str | None:
        with self._looking:
            verdict = self._verdicts.get(digest)
            if verdict is not None:
                self._verdicts.move_to_end(digest)
            return verdict

    def _remember(self, digest: bytes, verdict: str) -> None:
        with self._looking:
            self._verdicts[digest] = verdict
            if len(self._verdicts) > MAX_REMEMBERED:
                self._verdicts.popitem(last=False)

    def _living_child(self) -> "_Child":
        if self._closed:
            raise UnfitGrammar("the engine is being closed")
        if self._child is not None and not self._child.alive:  # it died while idle, so that no grammar is the cause
            self._child.kill()
            self._child = None
        if self._child is None:
            self._child = _Child(self._vocabulary)
        return self._child

    def _try(self, lark: str) -> str:
        """Why the grammar is unfit; empty if it is fit. Raises `UnfitGrammar` if it cannot be tried now."""
        child = self._living_child()
        try:
            child.wait_until_ready()
        except _ChildDied as death:
            log.error("constraint_check_not_ready reason=%r", str(death))  # noqa: TRY400 - the reason suffices
            self._replace(child)
            raise UnfitGrammar("grammars cannot be tried out now; try again later") from death
        try:
            return child.ask(lark.encode()).decode()
        except _ChildDied as death:
            log.warning("constraint_check_died reason=%r grammar_chars=%d", str(death), len(lark))
            self._replace(child)
            return str(death)

    def _replace(self, child: "_Child") -> None:
        """Kill the child and start a new one in advance, so that the next grammar does not wait for it."""
        child.kill()
        self._child = _Child(self._vocabulary)


class _ChildDied(Exception):
    """The child died while it tried a grammar; the message says what that means for the grammar."""


class _Child:
    """One child process."""

    def __init__(self, vocabulary: bytes) -> None:
        self._connection, childs_end = Pipe()
        with childs_end:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "workers.runtime.constraint_check", str(childs_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a crash of the compiler prints pages
                env=child_environment(),
                pass_fds=[childs_end.fileno()],
            )
        self._ready = False
        # On a thread, since a vocabulary exceeds a pipe's buffer and sending blocks until the child reads it.
        threading.Thread(target=self._send, args=(vocabulary,), name="constraint-check", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Block until the child has read the vocabulary. Raises `_ChildDied`."""
        if not self._ready:
            self._receive(READY_S)
            self._ready = True

    def ask(self, grammar: bytes) -> bytes:
        """The child's verdict on the grammar. Blocks. Raises `_ChildDied`."""
        self._send(grammar)
        return self._receive(MAX_WAIT_S)

    def kill(self) -> None:
        """Kill the process. Idempotent."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError as error:  # the child has died, which `_receive` detects
            log.debug("constraint_check_gone error=%s", error)

    def _receive(self, within_s: float) -> bytes:
        try:
            if self._connection.poll(within_s):
                return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise _ChildDied(self._cause_of_death()) from error
        raise _ChildDied(f"the grammar is too complex: it was not compiled within {within_s:g} s")

    def _cause_of_death(self) -> str:
        status = self._process.wait(MAX_WAIT_S)
        if status == -signal.SIGPROF:
            return f"the grammar is too complex: compiling it takes more than {MAX_CPU_S:g} s"
        return (
            f"the grammar is too complex: it is nested too deeply, or takes more than {MAX_BYTES >> 20} MiB to compile"
        )


def main() -> int:
    """The child's loop: receive a vocabulary, then answer each grammar with a verdict, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the worker, which finishes its requests
    connection = Connection(int(sys.argv[1]))
    try:
        _serve(connection)
    except (EOFError, OSError):  # the worker has closed its end
        return 0


def _serve(connection: "Connection[bytes, bytes]") -> NoReturn:
    tokens, special, ends = msgpack.unpackb(connection.recv_bytes())
    tokenizer = Vocabulary(tokens, special, ends).tokenizer()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    except (OSError, ValueError) as error:  # macOS has no such limit; the one on processor time is left
        sys.stderr.write(f"no limit on memory: {error}\n")
    threading.stack_size(STACK_BYTES)
    connection.send_bytes(b"")
    while True:
        lark = connection.recv_bytes().decode()
        connection.send_bytes(_on_small_stack(partial(verdict_on, lark, tokenizer)).encode())


def verdict_on(lark: str, tokenizer: LLTokenizer) -> str:
    """Why the grammar is unfit; empty if it is fit. May end the process, at a limit or in a crash."""
    # The timer's signal has no handler, so that it ends the process even in native code.
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
    try:
        matcher = LLMatcher(tokenizer, lark, log_level=0, limits=limits())
        chosen = random.Random(len(lark))  # noqa: S311 - not for security
        for _ in range(TRIED_TOKENS):
            if matcher.is_error() or matcher.is_stopped():
                break
            began_s = time.thread_time()
            token = some_token(matcher.compute_bitmask(), chosen.randrange(tokenizer.vocab_size))
            if token is None or token in tokenizer.eos_tokens:
                break
            matcher.consume_token(token)
            if time.thread_time() - began_s > MAX_TOKEN_S:
                return f"the grammar is too ambiguous: a token by it takes more than {MAX_TOKEN_S * 1000:g} ms"
        return reason_of(matcher.get_error())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _on_small_stack(work: Callable[[], str]) -> str:
    """The result of `work`, which runs on a thread with a stack of `STACK_BYTES`."""
    verdicts: list[str] = []
    thread = threading.Thread(target=lambda: verdicts.append(work()))
    thread.start()
    thread.join()
    return verdicts[0] if verdicts else "the grammar cannot be compiled"


if __name__ == "__main__":
    sys.exit(main())
