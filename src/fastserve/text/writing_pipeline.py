"""From raw text to a language model's ids and back: a tokenizer, and how prompts, answers and documents are framed.

The same object, saved with the model, frames what is learned and what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastserve.errors import BundleError, ConfigError
from fastserve.text.chat import ChatTemplate
from fastserve.text.language_tokenizer import LanguageTokenizer
from fastserve.types import Completion, Conversation, FloatArray, IntArray, Message, PlainText

Kind = Literal["text", "completion", "conversation"]
Answered = tuple[IntArray, FloatArray]
"""Token ids (T,), and how much each counts in the loss."""
PROMPT_END = "\n"
"""What parts a prompt from what is written after it, where the prompt does not end with white space itself."""
_VERSION = 1


class WritingPipeline:
    """kind: what the model was trained on, and so what a bare string means to it: the beginning of a text, a prompt,
    or what a user says. Conversations are written by the tokenizer's chat template.
    """

    def __init__(self, tokenizer: LanguageTokenizer, kind: Kind) -> None:
        self.tokenizer, self.kind = tokenizer, kind

    # What is learned

    def encode_texts(self, documents: Sequence[PlainText]) -> Iterator[IntArray]:
        """Each document's ids with its beginning and end, where it has them: int32 (T,)."""
        encoded = self.tokenizer.encode([document.text for document in documents])
        for place, document in enumerate(documents):
            ids = encoded.values[encoded.offsets[place] : encoded.offsets[place + 1]]
            yield np.concatenate([self._begin if document.begins else ids[:0], ids, self._end[: int(document.ends)]])

    def encode_completions(self, documents: Sequence[Completion]) -> Iterator[Answered]:
        """Of each document ids and weights: 1 in what follows the prompt and its end, 0 elsewhere."""
        prompts = self.tokenizer.encode([ended(document.prompt) for document in documents])
        answers = self.tokenizer.encode([document.completion for document in documents])
        for place in range(len(documents)):
            prompt, answer = (part.between(place, place + 1).values for part in (prompts, answers))
            weights = np.ones(len(self._begin) + len(prompt) + len(answer) + 1, np.float32)
            weights[: len(self._begin) + len(prompt)] = 0
            yield np.concatenate([self._begin, prompt, answer, self._end]), weights

    def encode_conversation(self, conversation: Conversation) -> Answered:
        """Ids and weights: 1 in what the assistant says and its end. DataError where the template declines it."""
        return self._chat.spans(conversation, self.tokenizer)

    def encode_answer(self, prompt: str | tuple[Message, ...], answer: str) -> Answered:
        """Ids and weights of one answer, of two that are compared; nothing of the prompt counts."""
        if isinstance(prompt, str) and self.kind != "conversation":
            return next(self.encode_completions([Completion(prompt, answer)]))
        before = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        ids, weights = self.encode_conversation(Conversation((*before, Message("assistant", answer))))
        weights[: len(self._chat.encode(before, self.tokenizer))] = 0  # earlier answers are part of the prompt
        return ids, weights

    # What is asked

    def ask(self, prompt: str | Sequence[Message]) -> IntArray:
        """The ids after which the model writes, int32 (T,): of a string as `kind` says, or of a conversation."""
        if not isinstance(prompt, str):
            return self._chat.encode(prompt, self.tokenizer)
        if self.kind == "conversation":
            return self._chat.encode([Message("user", prompt)], self.tokenizer)
        return self.go_on(prompt)

    def _as_learned(self, prompt: str) -> str:
        return ended(prompt) if self.kind == "completion" else prompt

    def converse(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> IntArray:
        """The ids after which the assistant answers, int32 (T,): of messages as the OpenAI API has them, and further
        variables of the chat template. ConfigError for a model that was not trained on conversations."""
        return self._chat.encode_request(messages, self.tokenizer, variables)

    def go_on(self, prompt: str) -> IntArray:
        """The ids of a text that the model writes on from as it stands, int32 (T,); of a prompt where the model was
        trained on such, with what ends it."""
        return np.concatenate([self._begin, self.tokenizer.encode([self._as_learned(prompt)]).values])

    @property
    def takes_tools(self) -> bool:
        """Whether its chat template writes which tools there are."""
        template = self.tokenizer.template
        return self.kind == "conversation" and template is not None and template.takes_tools

    @property
    def ends(self) -> list[int]:
        """Ids that end what the model writes."""
        return sorted(self.tokenizer.ends)

    @property
    def _chat(self) -> ChatTemplate:
        template = self.tokenizer.template
        if template is None or self.kind != "conversation":
            raise ConfigError(
                "this model was trained on texts or prompts, not on conversations by a chat template: give it one "
                "string"
            )
        return template

    @property
    def _begin(self) -> IntArray:
        bos = self.tokenizer.bos
        return np.array([] if bos is None else [bos], np.int32)

    @property
    def _end(self) -> IntArray:
        return np.array([self.tokenizer.eos], np.int32)

    # Saving

    def save(self, folder: Path) -> dict[str, Any]:
        """What the manifest holds; tokenizer and template become files in `folder` that `transformers` reads too."""
        return {"version": _VERSION, "kind": self.kind, "tokenizer": self.tokenizer.save(folder)}

    @classmethod
    def load(cls, folder: Path, state: Mapping[str, Any]) -> WritingPipeline:
        """What `save` wrote. BundleError where a file or the state is damaged or from a newer FastServe."""
        if state.get("version") != _VERSION or not isinstance(state.get("tokenizer"), dict):
            raise BundleError(f"{folder}: the text steps are not of a form that this FastServe reads; train again")
        return cls(LanguageTokenizer.load(folder, state["tokenizer"]), state["kind"])


def ended(prompt: str) -> str:
    """A prompt with what parts it from the answer."""
    return prompt if prompt[-1:].isspace() else prompt + PROMPT_END
