"""From the body of a request to orders for the engine. No network, no sockets; runs beside the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastserve.errors import ConfigError, DataError
from fastserve.generation.orders import Order
from fastserve.serving.generation.bodies import Body, ChatBody, ChatMessage, CompletionBody, TokenizeBody
from fastserve.serving.generation.tools import Reader, ToolReader, demanded, offered, template_message, template_tools
from fastserve.serving.messages import HttpError
from fastserve.text.writing_pipeline import WritingPipeline

_COMPLETION_TOKENS = 16  # where a request for completions does not say, as OpenAI has it


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was understood. new_reader: what takes tool calls out of each answer, where tools are offered."""

    orders: Sequence[Order]
    new_reader: Callable[[], Reader] | None = None


class Asking:
    """Reads requests for one model. longest: tokens of a prompt and what follows it; most: texts of a request."""

    def __init__(
        self, pipeline: WritingPipeline, *, longest: int, vocabulary: int, most: int, new_id: Callable[[], str]
    ) -> None:
        self.pipeline, self.longest, self.vocabulary, self.most = pipeline, longest, vocabulary, most
        self.new_id = new_id

    def completion(self, body: CompletionBody, key: str, adapter: str | None = None) -> Asked:
        """Orders for `/v1/completions`."""
        prompts = body.prompts
        self._check_count(body, len(prompts))
        ids = [self._ids(prompt) for prompt in prompts]
        whose = (key, adapter)
        return Asked([self._order(body, prompt, whose, _COMPLETION_TOKENS, body.logprobs or 0) for prompt in ids])

    def chat(self, body: ChatBody, key: str, adapter: str | None = None) -> Asked:
        """The order for `/v1/chat/completions`."""
        self._check_count(body, 1)
        if body.top_logprobs and not body.logprobs:
            raise HttpError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        order = self._order(body, self._conversation(body), (key, adapter), self.longest, body.top_logprobs or 0)
        forced = demanded(body)
        if forced is not None:
            grammar, reader = forced
            if order.grammar is not None:
                raise HttpError(400, "tool_choice and response_format exclude each other", param="response_format")
            return Asked([replace(order, grammar=grammar)], lambda: type(reader)(reader.name))
        return Asked([order], ToolReader if offered(body) else None)

    def tokens(self, body: TokenizeBody) -> list[int]:
        """The ids for `/tokenize`."""
        if (body.prompt is None) == (body.messages is None):
            raise HttpError(400, "expected exactly one of 'prompt' and 'messages'", param="prompt")
        if body.messages is not None:
            chat = ChatBody(messages=body.messages, tools=body.tools, chat_template_kwargs=body.chat_template_kwargs)
            return self._conversation(chat)
        if not body.add_special_tokens:
            return _list(self.pipeline.tokenizer.encode([body.prompt or ""]).values)
        return self._text(body.prompt or "")

    # ---- prompts

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._text(prompt)
        wrong = next((token for token in prompt if token >= self.vocabulary), None)
        if wrong is not None:
            raise HttpError(400, f"prompt: no token {wrong}; ids go to {self.vocabulary - 1:,}", param="prompt")
        return prompt

    def _text(self, prompt: str) -> list[int]:
        try:
            return _list(self.pipeline.go_on(prompt))
        except DataError as error:
            raise HttpError(400, f"prompt: {error}", param="prompt") from None

    def _conversation(self, body: ChatBody) -> list[int]:
        """The ids after which the assistant answers."""
        if self.pipeline.kind != "conversation":
            learned = "plain text" if self.pipeline.kind == "text" else "prompts and completions"
            raise HttpError(
                400,
                f"this model was trained on {learned}, not on conversations: use /v1/completions",
                param="messages",
            )
        tools = template_tools(offered(body))
        if tools is not None and not self.pipeline.takes_tools:
            raise HttpError(400, "the chat template of this model has no place for tools", param="tools")
        self._check_roles(body.messages)
        variables = {**(body.chat_template_kwargs or {}), "tools": tools}
        try:
            return _list(self.pipeline.converse([template_message(message) for message in body.messages], variables))
        except (ConfigError, DataError) as error:
            raise HttpError(400, f"messages: {error}", param="messages") from None

    def _check_roles(self, messages: Sequence[ChatMessage]) -> None:
        """Calls and their results have a place only where the template knows tools."""
        if self.pipeline.takes_tools:
            return
        for place, message in enumerate(messages):
            if message.role == "tool" or message.tool_calls:
                raise HttpError(
                    400, f"messages.{place}: the chat template of this model has no place for tools", param="messages"
                )

    # ---- orders

    def _check_count(self, body: Body, prompts: int) -> None:
        if not prompts:
            raise HttpError(400, "prompt holds nothing", param="prompt")
        if prompts * max(body.n or 1, 1) > self.most:
            raise HttpError(400, f"{prompts} prompts times n = {body.n or 1}: at most {self.most} texts", param="n")

    def _order(self, body: Body, prompt: list[int], whose: tuple[str, str | None], usual: int, top: int) -> Order:
        """whose: key and adapter; usual: tokens to write where the request does not say. HttpError where the prompt is
        empty or does not fit."""
        field = "messages" if isinstance(body, ChatBody) else "prompt"
        if not prompt:
            raise HttpError(400, f"{field} has no tokens: give at least one character", param=field)
        wanted = body.most_tokens
        if len(prompt) + (wanted or 1) > self.longest:
            more = f" and asks for {wanted}" if wanted else ""
            raise HttpError(
                400,
                f"{field} has {len(prompt):,} tokens{more}, but this model reads and writes at most "
                f"{self.longest:,} together",
                param=field,
                code="context_length_exceeded",
            )
        sampling = body.sampling(wanted or min(usual, self.longest - len(prompt)))
        if any(token >= self.vocabulary for token in sampling.logit_bias):
            raise HttpError(400, f"logit_bias: token ids go to {self.vocabulary - 1:,}", param="logit_bias")
        return Order(
            self.new_id(),
            prompt,
            sampling,
            priority=body.priority or 0,
            key=whose[0],
            adapter=whose[1],
            top_logprobs=top,
            grammar=body.grammar(),
        )


def _list(ids: np.ndarray) -> list[int]:
    return [int(token) for token in ids]
