"""The public `openai` client, unchanged, sync and async, against the shipped fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fastserve.serving.fake import FakeSource
from fastserve.serving.inprocess import running
from fastserve.serving.model import Named
from fastserve.serving.options import ServeOptions

openai = pytest.importorskip("openai", reason="needs the openai client (extra 'test')")
Write = Callable[..., Any]
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("poet")
    (folder / "fake_writer.json").write_text("{}")
    options = ServeOptions(port=0, log_level="error")
    with running([Named("poet", str(folder))], options, FakeSource(options)) as (url, node):
        yield SimpleNamespace(url=url, node=node)


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


def test_completions(client: Any) -> None:
    done = client.completions.create(model="poet", prompt="the moon", max_tokens=7)
    assert done.object == "text_completion"
    assert done.choices[0].finish_reason == "length"
    assert len(done.choices[0].text) >= 7
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (4, 7, 11)
    assert done.model == "poet"


def test_prompts_of_every_form(client: Any) -> None:
    ids = [2, 283, 264, 280]
    forms = ["the moon", ids, ["the moon", "b"], [ids, [2, 30]]]
    texts = [
        [choice.text for choice in client.completions.create(model="poet", prompt=form, max_tokens=5).choices]
        for form in forms
    ]
    assert [len(text) for text in texts] == [1, 1, 2, 2]
    assert {text[0] for text in texts} == {texts[0][0]}, "the same prompt, said in four ways"


def test_a_stream_adds_up_to_the_whole(client: Any) -> None:
    wanted = {"model": "poet", "prompt": "the moon", "max_tokens": 40}
    whole = client.completions.create(**wanted)
    pieces = list(client.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in pieces[:-1]) == whole.choices[0].text
    assert len(pieces) > 20
    assert [piece.usage for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices == []
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens == 40
    assert pieces[-2].choices[0].finish_reason == "length"
    assert len({piece.id for piece in pieces}) == 1


def test_chat(client: Any) -> None:
    done = client.chat.completions.create(model="poet", messages=USER, max_completion_tokens=6)
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].message.content
    assert done.usage.prompt_tokens_details.cached_tokens == 16
    stream = client.chat.completions.create(model="poet", messages=USER, max_tokens=6, stream=True)
    pieces = [piece.choices[0] for piece in stream]
    assert pieces[0].delta.role == "assistant"
    assert "".join(piece.delta.content or "" for piece in pieces) == done.choices[0].message.content
    assert pieces[-1].finish_reason == "length"


def test_content_in_parts_and_a_system_message(client: Any) -> None:
    def say(*messages: Any) -> str:
        return client.chat.completions.create(model="poet", messages=list(messages), max_tokens=5).usage.prompt_tokens

    plain = say({"role": "system", "content": "be brief"}, {"role": "user", "content": "ab"})
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert say({"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}) == plain


def test_logprobs(client: Any) -> None:
    done = client.completions.create(model="poet", prompt="a", max_tokens=4, logprobs=2)
    told = done.choices[0].logprobs
    assert "".join(told.tokens) == done.choices[0].text
    assert told.token_logprobs == [-1.0, -2.0, -3.0, -1.0]
    assert [len(top) for top in told.top_logprobs] == [2, 2, 2, 2]
    assert told.text_offset[0] == 0
    assert told.text_offset == sorted(told.text_offset)
    done = client.chat.completions.create(model="poet", messages=USER, max_tokens=4, logprobs=True, top_logprobs=3)
    content = done.choices[0].logprobs.content
    assert bytes(b for token in content for b in token.bytes).decode() == done.choices[0].message.content
    assert [len(token.top_logprobs) for token in content] == [3] * 4
    stream = client.chat.completions.create(model="poet", messages=USER, max_tokens=4, logprobs=True, stream=True)
    told = [
        token.logprob for piece in stream if piece.choices[0].logprobs for token in piece.choices[0].logprobs.content
    ]
    assert told == [token.logprob for token in content]


def test_several_texts(client: Any) -> None:
    done = client.completions.create(model="poet", prompt=["a", "b"], n=3, max_tokens=5)
    assert [choice.index for choice in done.choices] == list(range(6))
    assert len({choice.text for choice in done.choices}) > 1
    streamed = [""] * 6
    for piece in client.completions.create(model="poet", prompt=["a", "b"], n=3, max_tokens=5, stream=True):
        streamed[piece.choices[0].index] += piece.choices[0].text
    assert streamed == [choice.text for choice in done.choices]


def test_stop_strings(client: Any) -> None:
    whole = client.completions.create(model="poet", prompt="a", max_tokens=60).choices[0].text
    stop = whole[20:24]
    done = client.completions.create(model="poet", prompt="a", max_tokens=60, stop=[stop, "never"]).choices[0]
    assert done.finish_reason == "stop"
    assert done.text == whole[: whole.index(stop)]
    stream = client.completions.create(model="poet", prompt="a", max_tokens=60, stop=stop, stream=True)
    assert "".join(piece.choices[0].text for piece in stream) == done.text


def test_everything_that_is_honored_is_taken(client: Any) -> None:
    done = client.chat.completions.create(
        model="poet",
        messages=USER,
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"30": 5},
        seed=7,
        user="somebody",
        response_format={"type": "json_object"},
        parallel_tool_calls=True,
        store=False,
        extra_body={"priority": 3, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
        extra_headers={"X-Request-Id": "mine"},
    )
    assert done.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"n": 0}, "n", "greater than 0"),
        ({"n": 1000}, "n", "at most 128 texts"),
        ({"stop": [""]}, "stop", "empty string"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "no token id"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "token ids go to"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"tool_choice": "required"}, "tool_choice", "needs 'tools'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs 'json_schema'"),
        ({"service_tier": "flex"}, "service_tier", "service_tier is not supported"),
        ({"extra_body": {"min_tokens": 3}}, "min_tokens", "min_tokens is not supported"),
        ({"extra_body": {"temprature": 1}}, "temprature", "did you mean 'temperature'?"),
        ({"extra_body": {"structured_outputs": {"regex": "a", "choice": ["b"]}}}, "structured_outputs", "exactly one"),
        ({"extra_body": {"structured_outputs": {"regex": "a"}}}, None, "knows no regular expressions"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream to true"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages", "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages", "no place for tools"),
    ],
)
def test_what_is_wrong_is_named(client: Any, fields: dict[str, Any], param: str | None, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "poet", "messages": USER, "max_tokens": 3, **fields})
    error = caught.value
    assert error.status_code == 400
    assert error.param == param
    assert error.type == "invalid_request_error"
    assert words in error.message


def test_too_long(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="poet", prompt="xy " * 5000, max_tokens=10)
    assert caught.value.code == "context_length_exceeded"
    assert "at most 4,096 together" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="poet", prompt="a", max_tokens=4096)
    assert caught.value.code == "context_length_exceeded"
    assert client.completions.create(model="poet", prompt="a", max_tokens=1).choices


def test_what_is_not_there(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="novelist", prompt="a")
    assert caught.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == ["poet"]
    assert client.models.retrieve("poet").id == "poet"


def test_keys_and_their_errors(write: Write, tmp_path: Any) -> None:
    (tmp_path / "keys").write_text("ann:correct-horse-battery\n")
    server = write(api_key_file=str(tmp_path / "keys"), requests_per_second=0.01, burst=3)
    ask = {"model": "poet", "prompt": "a", "max_tokens": 1}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.completions.create(**ask)
        assert caught.value.type == "authentication_error"
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="correct-horse-battery", max_retries=0) as client:
        for _ in range(3):
            client.completions.create(**ask)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(**ask)


def test_a_model_of_plain_text_does_not_chat(write: Write) -> None:
    server = write({"kind": "text"})
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="was trained on plain text, not on conversations"):
            client.chat.completions.create(model="poet", messages=USER)
        assert client.completions.create(model="poet", prompt="a", max_tokens=1).choices


def test_async(server: Any) -> None:
    async def go() -> tuple[Any, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            ask = {"model": "poet", "messages": USER, "max_tokens": 9}
            whole = asyncio.gather(*[client.chat.completions.create(**ask) for _ in range(8)])
            stream = await client.chat.completions.create(**ask, stream=True)
            text = "".join([piece.choices[0].delta.content or "" async for piece in stream])
            return await whole, text

    whole, text = asyncio.run(go())
    assert {done.choices[0].message.content for done in whole} == {text}
