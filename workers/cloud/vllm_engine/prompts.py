"""Prompts, drafts and pieces of text in the cloud model's own tokens."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers
import tokenizers.decoders

from schemas.drafts import Draft
from schemas.requests import Message
from schemas.results import FailureKind, FinishReason
from workers.cloud.threshold_acceptance import cut_at_stop, partial_stop
from workers.cloud.token_bytes import Spelling
from workers.runtime.control_tokens import AddedToken, PromptTokens
from workers.runtime.failures import RequestRefused
from workers.runtime.vocabulary import fingerprint

#: The prompt of a model that ships no chat template: plain turns, so that any base model can serve.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
#: How `DecodeStream`'s error begins where bytes that are not UTF-8 change text that it returned before.
INVALID_PREFIX = "Invalid prefix encountered"


class TokenTexts:
    """The text that each token of an answer adds, decoded as vLLM itself does."""

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer._tokenizer  # noqa: SLF001 - as vLLM's detokenizer does
        self._stream = tokenizers.decoders.DecodeStream(ids=prompt, skip_special_tokens=True)

    def text_of(self, token: int) -> str:
        """The text that this next token adds; none for half a character or a control token."""
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:
            if not str(error).startswith(INVALID_PREFIX):
                raise
        self._stream = tokenizers.decoders.DecodeStream(skip_special_tokens=True)
        return self._stream.step(self._tokenizer, token) or ""


class HuggingFaceTokenizer:
    """A `workers.runtime.control_tokens.Tokenizer`. `first_token` is None where the template writes it itself."""

    def __init__(self, tokenizer: Any, first_token: int | None) -> None:
        self._tokenizer = tokenizer
        # A copy: the switch changes the tokenizer, and vLLM needs one that knows control tokens.
        self._plain = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self.first_token = first_token

    def added_tokens(self) -> Iterator[AddedToken]:
        """All tokens that the tokenizer recognises by their text."""
        for token_id, token in self._tokenizer.added_tokens_decoder.items():
            yield AddedToken(
                text=token.content,
                token_id=token_id,
                is_control=token.special,
                strips_left=token.lstrip,
                strips_right=token.rstrip,
            )

    def rendered_tokens(self, rendered: str) -> list[int]:
        """The tokens of a rendered prompt in which every added token is recognised, `first_token` in front."""
        token_ids: list[int] = self._tokenizer.encode(rendered, add_special_tokens=False)
        return token_ids if self.first_token is None else [self.first_token, *token_ids]

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of a text in which no control token is recognised."""
        token_ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return token_ids


class Prompts:
    """One model's tokenizer and chat template. As thread-safe as the tokenizer."""

    def __init__(self, tokenizer: Any, context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._spellings: list[str] = [
            text or "" for text in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        ]
        self.vocabulary = fingerprint(self._spellings)
        decoder = tokenizer.backend_tokenizer.decoder
        self._spelling = Spelling.of_decoder(json.loads(decoder.__getstate__()) if decoder else {})
        self._control = frozenset(
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        self._template = None if tokenizer.chat_template else PLAIN_TEMPLATE
        # A template writes the first token itself; without one, the text begins with the model's own.
        first = None if tokenizer.chat_template else tokenizer.bos_token_id
        template = str(tokenizer.chat_template or PLAIN_TEMPLATE)
        self._prompts = PromptTokens(HuggingFaceTokenizer(tokenizer, first), self._render, template)

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The conversation as the model reads it. Raises `RequestRefused` if the context has no room for an answer."""
        token_ids = self._prompts.of(messages)
        if len(token_ids) >= self._context_tokens:
            raise RequestRefused(
                FailureKind.PROMPT_TOO_LONG,
                f"the prompt has {len(token_ids)} tokens and the cloud model's context {self._context_tokens};"
                " shorten the conversation",
            )
        return token_ids

    def _render(self, messages: Sequence[Message]) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            chat_template=self._template,
            add_generation_prompt=True,
            tokenize=False,
        )
        return rendered

    def text_tokens(self, text: str) -> list[int]:
        """A piece of text in this model's tokens, none of which is a control token; nothing is put in front."""
        return self._prompts.of_text(text)

    def bytes_of(self, token: int) -> bytes:
        """The bytes that the token adds to a text, perhaps part of a character; control tokens add none."""
        return b"" if token in self._control else self._spelling.bytes_of(self._spellings[token])

    def label(self, token: int) -> str:
        """The token as people can read it, control tokens included."""
        return self._spellings[token] if token in self._control else self.bytes_of(token).decode(errors="replace")

    def room(self, prompt: Sequence[int]) -> int:
        """The number of tokens that fit behind the prompt."""
        return self._context_tokens - len(prompt)

    def draft_tokens(self, draft: Draft) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The draft in this model's tokens, and the edge's probability of each where it is known.

        Where the vocabularies differ, the draft's text is tokenized anew, and the probabilities, which belong to the
        edge's tokens, are left out.
        """
        if draft.vocabulary == self.vocabulary:
            return draft.token_ids, draft.figures.probability
        token_ids = tuple(self.text_tokens(draft.text))
        end = self._tokenizer.eos_token_id
        if draft.finish_reason is FinishReason.STOP and not draft.escalated_early and end is not None:
            token_ids = (*token_ids, end)
        return token_ids, ()

    def token_texts(self, prompt: list[int]) -> TokenTexts:
        """The text of each token of an answer to this prompt."""
        return TokenTexts(self._tokenizer, prompt)

    def cut(self, prompt: list[int], tokens: Sequence[int], stops: Sequence[str]) -> tuple[str, int, bool]:
        """Where an answer of these tokens ends: its text, how many tokens are kept, and whether it is complete."""
        end = self._tokenizer.eos_token_id
        ended = end in tokens
        kept = tokens[: tokens.index(end) + 1] if ended else tokens
        decoded = self.token_texts(prompt)
        texts = [decoded.text_of(token) for token in kept]
        text = "".join(texts)
        cut = cut_at_stop([len(part) for part in texts], text, stops)
        if cut is not None:
            return text[: cut[1]], cut[0], True
        if not ended:
            # The model writes the beginning of a stop string again, so that vLLM sees the whole of it.
            num_dropped = partial_stop(text, stops)
            while num_dropped > 0:
                num_dropped -= len(texts.pop())
            # And half a character, which vLLM would not join with the other half.
            while texts and not texts[-1] and self.bytes_of(kept[len(texts) - 1]):
                texts.pop()
        return "".join(texts), len(texts), ended
