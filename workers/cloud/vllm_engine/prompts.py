"""Prompts, drafts and pieces of text in the cloud model's own tokens."""

from collections.abc import Sequence
from typing import Any

import tokenizers.decoders

from schemas.drafts import Draft
from schemas.requests import Message
from schemas.results import FailureKind, FinishReason
from workers.cloud.accepting import begun_stop, cut_at_stop
from workers.failures import RequestRefused
from workers.vocabulary import fingerprint

#: The prompt of a model that ships no chat template: plain turns, so that any base model can stand in the cloud.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class TextLengths:
    """What each token of an answer adds to its text, by the rule that vLLM itself uses."""

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer._tokenizer  # noqa: SLF001 - vLLM's detokenizer takes the same
        self._stream = tokenizers.decoders.DecodeStream(ids=prompt, skip_special_tokens=True)

    def text_of(self, token: int) -> str:
        """Text that this next token added; none for half a character or a control token."""
        return self._stream.step(self._tokenizer, token) or ""

    def added_by(self, token: int) -> int:
        """Characters that this next token added."""
        return len(self.text_of(token))


class Prompts:
    """One model's tokenizer and chat template. Thread-safe as far as the tokenizer is."""

    def __init__(self, tokenizer: Any, context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self.vocabulary = fingerprint(
            text or "" for text in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        )

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The conversation as the model reads it. Raises `RequestRefused` if nothing could be written after it."""
        template = None if self._tokenizer.chat_template else PLAIN_TEMPLATE
        text = self._tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
        )
        # A template writes the control tokens itself; without one, the text begins with the model's own first token.
        first = self._tokenizer.bos_token_id if template is not None else None
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        token_ids = [first, *token_ids] if first is not None else token_ids
        if len(token_ids) >= self._context_tokens:
            raise RequestRefused(
                FailureKind.PROMPT_TOO_LONG,
                f"the prompt has {len(token_ids)} tokens and the cloud model's context {self._context_tokens};"
                " shorten the conversation",
            )
        return token_ids

    def text_tokens(self, text: str) -> list[int]:
        """A piece of text in this model's tokens, nothing added."""
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return token_ids

    def room(self, prompt: Sequence[int]) -> int:
        """Tokens that fit behind the prompt."""
        return self._context_tokens - len(prompt)

    def draft_tokens(self, draft: Draft) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The draft in this model's tokens, and the edge's probability of each where it is known.

        Where the vocabularies differ, the two models meet at the text: it is tokenized anew, and figures of tokens
        that do not exist here are left out.
        """
        if draft.vocabulary == self.vocabulary:
            return draft.token_ids, draft.figures.probability
        token_ids = tuple(self.text_tokens(draft.text))
        end = self._tokenizer.eos_token_id
        if draft.finish_reason is FinishReason.STOP and not draft.escalated_early and end is not None:
            token_ids = (*token_ids, end)
        return token_ids, ()

    def text_lengths(self, prompt: list[int]) -> TextLengths:
        """A fresh account of an answer to this prompt."""
        return TextLengths(self._tokenizer, prompt)

    def cut(self, prompt: list[int], tokens: Sequence[int], stops: Sequence[str]) -> tuple[str, int, bool]:
        """Where an answer of these tokens ends: its text, how many of the tokens it takes, and whether it is over."""
        end = self._tokenizer.eos_token_id
        ended = end in tokens
        kept = tokens[: tokens.index(end) + 1] if ended else tokens
        lengths = self.text_lengths(prompt)
        texts = [lengths.text_of(token) for token in kept]
        text = "".join(texts)
        cut = cut_at_stop([len(part) for part in texts], text, stops)
        if cut is not None:
            return text[: cut[1]], cut[0], True
        if not ended:
            # What may be half a stop string is left to the model to write again, so that vLLM sees it whole.
            held_back = begun_stop(text, stops)
            while held_back > 0:
                held_back -= len(texts.pop())
        return "".join(texts), len(texts), ended
