"""Whether an engine can bear a grammar: tried out in a child process, where a crash or a gigabyte costs nothing.

A grammar may be so deep that its compiler overflows the stack, so large that it takes all memory, or so ambiguous that
each token takes seconds. The child compiles it and writes a few tokens by it, with limits on memory, stack and
processor time. It is started again when it has died. One grammar is tried at a time.

`python -m workers.runtime.constraint_check` is the child.
"""

import hashlib
import logging
import os
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import IO

import msgpack
from llguidance import LLMatcher, LLTokenizer

from config.environment import child_environment
from workers.runtime.constraints import Vocabulary, limits, reason_of, some_token

#: Seconds of processor time that trying a grammar may take.
MAX_CPU_S = 1.0
#: Seconds after which the child is killed whatever it does; more than the former, for a machine that is busy.
MAX_WAIT_S = 10.0
#: Bytes of address space that the child may have; it needs a third of that for itself and a large vocabulary.
MAX_BYTES = 1 << 30
#: The stack on which the child compiles, in bytes; an engine's threads have eight times as much.
STACK_BYTES = 1 << 20
#: Tokens that the child writes by a grammar: enough to notice one whose every token takes longer than the last.
TRIED_TOKENS = 64
#: Seconds of processor time that any of them may take: an engine makes everybody wait for as long.
MAX_TOKEN_S = 0.05
#: Seconds until a child must be ready: it reads a vocabulary, on a machine that may be loading a model.
READY_S = 30.0
#: Verdicts that are remembered, refusals too: whoever repeats a grammar costs nothing. Each is its cache namespace's
#: own, or the time until the next would tell who else has sent the same grammar.
MAX_REMEMBERED = 512
#: In front of each message: its length.
_LENGTH = struct.Struct("<I")

log = logging.getLogger(__name__)


class UnfitGrammar(ValueError):
    """No engine is to be given this grammar; the message says why."""


class ConstraintCheck:
    """The child, started with the first grammar, and what it found. Safe on any thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = msgpack.packb([list(vocabulary.tokens), list(vocabulary.special), list(vocabulary.ends)])
        self._child: _Child | None = None
        #: Held while a grammar is tried out, and while verdicts are looked up: what is known waits for nobody.
        self._turn, self._looking = threading.Lock(), threading.Lock()
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()
        self._closed = False

    def check(self, lark: str, namespace: str) -> None:
        """Return if an engine can bear the grammar, or else raise `UnfitGrammar`. Blocks: a millisecond, a second."""
        digest = hashlib.sha256(namespace.encode() + b"\xff" + lark.encode()).digest()
        verdict = self._remembered(digest)
        if verdict is None:
            with self._turn:
                verdict = self._remembered(digest)  # it may have come twice at once
                if verdict is None:
                    verdict = self._try_out(lark)
                    self._remember(digest, verdict)
        if verdict:
            raise UnfitGrammar(verdict)

    def close(self) -> None:
        """End the child. Idempotent."""
        with self._turn:
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

    def _living(self) -> "_Child":
        if self._closed:
            raise UnfitGrammar("the engine is being closed")
        if self._child is not None and not self._child.lives:  # no grammar's fault: it had none in hand
            self._child.kill()
            self._child = None
        if self._child is None:
            self._child = _Child(self._vocabulary)
        return self._child

    def _try_out(self, lark: str) -> str:
        """Why the grammar is unfit; empty where it is not. Raises `UnfitGrammar` where that stays unknown."""
        child = self._living()
        try:
            child.wait_until_ready()
        except _ChildDied as death:
            log.error("constraint_check_not_ready reason=%r", str(death))  # noqa: TRY400 - not this stack's
            self._replace(child)
            raise UnfitGrammar("grammars cannot be tried out now; try again later") from death
        try:
            return child.ask(lark.encode()).decode()
        except _ChildDied as death:
            log.warning("constraint_check_died reason=%r grammar_chars=%d", str(death), len(lark))
            self._replace(child)
            return str(death)

    def _replace(self, child: "_Child") -> None:
        """A new child gets ready while nobody waits for it."""
        child.kill()
        self._child = _Child(self._vocabulary)


class _ChildDied(Exception):
    """The message says what of the grammar it means."""


class _Child:
    """One life of the child process."""

    def __init__(self, vocabulary: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.runtime.constraint_check"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a crash of the compiler writes pages
            env=child_environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._ready = False
        # Written at once, so that the child gets ready while nobody waits; a pipe holds less than a vocabulary.
        threading.Thread(target=self._tell, args=(vocabulary,), name="constraint-check", daemon=True).start()

    @property
    def lives(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Block until it has read the vocabulary."""
        if not self._ready:
            self._read(READY_S)
            self._ready = True

    def ask(self, question: bytes) -> bytes:
        """Its answer to one grammar. Raises `_ChildDied`."""
        self._tell(question)
        return self._read(MAX_WAIT_S)

    def kill(self) -> None:
        """End it. Idempotent."""
        self._process.kill()
        self._process.wait()
        self._stdout.close()
        with suppress(OSError):  # what it was not told any more
            self._stdin.close()

    def _tell(self, message: bytes) -> None:
        try:
            self._stdin.write(_LENGTH.pack(len(message)) + message)
            self._stdin.flush()
        except (OSError, ValueError) as error:  # it is gone, which reading tells
            log.debug("constraint_check_gone error=%s", error)

    def _read(self, within_s: float) -> bytes:
        deadline = time.monotonic() + within_s
        (length,) = _LENGTH.unpack(self._read_exactly(_LENGTH.size, deadline))
        return self._read_exactly(length, deadline)

    def _read_exactly(self, length: int, deadline: float) -> bytes:
        descriptor, read = self._stdout.fileno(), b""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while len(read) < length:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _ChildDied(f"the grammar is too complex: it was not compiled within {MAX_WAIT_S:g} s")
            some = os.read(descriptor, length - len(read))
            if not some:
                raise _ChildDied(self._why_it_died())
            read += some
        return read

    def _why_it_died(self) -> str:
        status = self._process.wait(MAX_WAIT_S)
        if status == -signal.SIGPROF:
            return f"the grammar is too complex: compiling it takes more than {MAX_CPU_S:g} s"
        return (
            f"the grammar is too complex: it is nested too deeply, or takes more than {MAX_BYTES >> 20} MiB to compile"
        )


def main() -> int:
    """The child: a vocabulary in, then one verdict for each grammar, until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which then finishes what it has
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    first = _next(asked)
    if first is None:
        return 0
    tokens, special, ends = msgpack.unpackb(first)
    tokenizer = Vocabulary(tokens, special, ends).tokenizer()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    except (OSError, ValueError) as error:  # macOS has no such limit; the one on processor time is left
        sys.stderr.write(f"no limit on memory: {error}\n")
    threading.stack_size(STACK_BYTES)
    _answer(answers, b"")
    while (lark := _next(asked)) is not None:
        _answer(answers, _on_small_stack(partial(verdict_on, lark.decode(), tokenizer)).encode())
    return 0


def verdict_on(lark: str, tokenizer: LLTokenizer) -> str:
    """Why no engine is to have the grammar; empty where one may. May end the process: at its limits, or in a crash."""
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)  # nobody handles its signal, which ends the process in any code
    try:
        matcher = LLMatcher(tokenizer, lark, log_level=0, limits=limits())
        chosen = random.Random(len(lark))  # noqa: S311 - any tokens will do
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
    """What the work answers, done on a thread, whose stack is as large as was set for threads."""
    answered: list[str] = []
    thread = threading.Thread(target=lambda: answered.append(work()))
    thread.start()
    thread.join()
    return answered[0] if answered else "the grammar cannot be compiled"


def _next(stream: IO[bytes]) -> bytes | None:
    head = stream.read(_LENGTH.size)
    return stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else None


def _answer(stream: IO[bytes], message: bytes) -> None:
    stream.write(_LENGTH.pack(len(message)) + message)
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
