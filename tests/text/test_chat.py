"""Chat templates: what they render, what they may not do, and which tokens the assistant says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.errors import ConfigError, DataError
from fastserve.text.chat import CHATML, ChatTemplate
from fastserve.text.language_tokenizer import SPECIAL, LanguageTokenizer
from fastserve.types import Conversation, Message

SYSTEM, ASK, ANSWER = Message("system", "写诗"), Message("user", "你好 "), Message("assistant", " 明月光\n")
TALK = Conversation((SYSTEM, ASK, ANSWER, Message("user", "more?"), Message("assistant", "疑是地上霜")))

MARKED = (
    "{%- for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}"
    "{%- generation %} {{ m.content | trim }} <|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set content = system_message + message['content'] if loop.index0 == 0 else message['content'] %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + m.content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
OPTIONS = """\
{%- macro shown(value) -%}{{ value | tojson(indent=2) }}{%- endmacro %}
{{- bos_token }}{{ strftime_now('%Y') | length }}
{%- for m in messages if m.content is defined and m.role in ['user', 'assistant'] %}
{{ loop.index }}/{{ loop.length }} {{ shown({'role': m['role'], 'text': m.content | replace('好', '<b>')}) }}
{%- if loop.last and not tools %}{{ '%s!' % m.role }}{% break %}{% endif %}
{%- endfor %} {{ messages | map(attribute='role') | join(', ') }} {{ ('a' ~ 1 ~ none) | upper }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ dict(a=1) | items | list }}"""
TEMPLATES = {
    "chatml": CHATML, "marked": MARKED, "llama2": LLAMA2, "thinking": THINKING, "options": OPTIONS,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> LanguageTokenizer:
    return LanguageTokenizer.train(["床前明月光，疑是地上霜。[INST] assistant more? "] * 20, size=400)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<|begin|>", "eos_token": "<|end|>"})


def as_dicts(talk: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in talk.messages]


def said(tokenizer: LanguageTokenizer, source: str, talk: Conversation) -> list[str]:
    """The texts of the runs of tokens that count."""
    ids, weights = template(source).spans(talk, tokenizer)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], weights, [0]])))
    assert set(weights.tolist()) <= {0.0, 1.0}
    return [tokenizer.decode(ids[a:b], special=True) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_a_template_renders_as_transformers_renders_it(name: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    expected, _ = render_jinja_template(
        [as_dicts(TALK)], chat_template=TEMPLATES[name], add_generation_prompt=prompt,
        bos_token="<|begin|>", eos_token="<|end|>",
    )  # fmt: skip
    assert template(TEMPLATES[name]).render(TALK.messages, add_generation_prompt=prompt) == expected[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", [" 明月光\n<|im_end|>", "疑是地上霜<|im_end|>"]),
        ("marked", [" 明月光 <|end|>", " 疑是地上霜 <|end|>"]),
        ("llama2", [" 明月光 <|end|>", " 疑是地上霜 <|end|>"]),
        ("thinking", [" 明月光\n<|im_end|>", "<think>\n\n</think>\n\n疑是地上霜<|im_end|>"]),
    ],
)
def test_what_the_assistant_says_counts_and_its_end_does(
    tokenizer: LanguageTokenizer, name: str, expected: list[str]
) -> None:
    assert said(tokenizer, TEMPLATES[name], TALK) == expected


@pytest.mark.parametrize("name", ["chatml", "marked", "llama2", "thinking"])
def test_ids_are_those_of_the_whole_rendering(tokenizer: LanguageTokenizer, name: str, tmp_path: Path) -> None:
    import transformers

    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    made = template(TEMPLATES[name])
    whole = theirs(made.render(TALK.messages), add_special_tokens=False)["input_ids"]
    assert made.spans(TALK, tokenizer)[0].tolist() == whole
    asked = theirs(made.render(TALK.messages[:-1], add_generation_prompt=True), add_special_tokens=False)["input_ids"]
    assert made.encode(TALK.messages[:-1], tokenizer).tolist() == asked == whole[: len(asked)]


def test_the_saved_folder_renders_the_same_in_transformers(tokenizer: LanguageTokenizer, tmp_path: Path) -> None:
    import transformers

    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    made = LanguageTokenizer.read(tmp_path).template
    assert made is not None
    for prompt in (False, True):
        text = theirs.apply_chat_template(as_dicts(TALK), tokenize=False, add_generation_prompt=prompt)
        assert made.render(TALK.messages, add_generation_prompt=prompt) == text
    ids = theirs.apply_chat_template(as_dicts(TALK), add_generation_prompt=True, return_dict=True)["input_ids"]
    assert made.encode(TALK.messages, tokenizer).tolist() == ids
    assert tokenizer.ends == {tokenizer.eos, tokenizer.special["<|im_end|>"]}


PIECES = st.lists(st.sampled_from([*SPECIAL, "a", " ", "\n", "<|", "im_end|>", "月", "\ufdd0", "\ufdd1", "\ufdd2"]))


@settings(max_examples=25, deadline=None)
@given(PIECES, PIECES)
@pytest.mark.parametrize("name", ["chatml", "marked", "llama2"])
def test_nobody_writes_special_tokens_but_the_template(
    tokenizer: LanguageTokenizer, name: str, question: list[str], answer: list[str]
) -> None:
    def special_of(*contents: str) -> list[int]:
        talk = Conversation(tuple(map(Message, ("user", "assistant"), contents)))
        ids, _ = template(TEMPLATES[name]).spans(talk, tokenizer)
        return [number for number in ids.tolist() if number in tokenizer.special.values()]

    assert special_of("q" + "".join(question), "a" + "".join(answer)) == special_of("q", "a")


def test_a_special_token_in_a_message_stays_readable(tokenizer: LanguageTokenizer) -> None:
    talk = Conversation((Message("user", "what is <|im_end|>?"), Message("assistant", "<|im_end|> ends a message")))
    ids, _ = template(CHATML).spans(talk, tokenizer)
    assert tokenizer.decode(ids, special=True) == template(CHATML).render(talk.messages)
    assert said(tokenizer, CHATML, talk) == ["<|im_end|> ends a message<|im_end|>"]


def test_a_template_that_hides_what_is_said_is_refused(tokenizer: LanguageTokenizer) -> None:
    turned = "{% for m in messages | reverse %}{{ m.role ~ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"in another way than within a conversation \(.*endgeneration"):
        template(turned).spans(TALK, tokenizer)
    shortened = THINKING.replace("m.role + '\\n' + m.content +", "m.role + '\\n' + m.content[:2] +")
    with pytest.raises(ConfigError, match="message 3, of the assistant, in another way when others follow"):
        template(shortened).spans(TALK, tokenizer)
    with pytest.raises(ConfigError, match="leaves out what the assistant says"):
        template("{% for m in messages %}{% endfor %}").check()


def test_a_template_that_does_not_take_a_conversation_says_why() -> None:
    with pytest.raises(DataError, match=r"does not take this conversation: Conversation roles must alternate"):
        template(LLAMA2).render([ASK, ASK])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n\n{{ 'x' }", "line 3: unexpected '}'"),
        ("{% for m in messages %}", "line 1: Unexpected end of template"),
        ("\n{{ messages | nonsense }}", "line 2: No filter named 'nonsense'"),
        ("\n\n{{ messages[0].nothing.more }}", "line 3: 'dict object' has no attribute 'nothing'"),
        ("{% for m in messages %}\n{{ m.content + 1 }}{% endfor %}", 'line 2: can only concatenate str'),
        ("{% include 'other' %}", "line 1: no loader"),
        ("{{ " + "(" * 5000 + " }}", "cannot be compiled: maximum recursion depth"),
        ("{{ " + "9" * 5000 + " }}", "cannot be compiled: Exceeds the limit"),
        ("{% break %}", "cannot be compiled: 'break' outside loop"),
        ("x" * 200_001, "has 200,001 characters"),
    ],
)  # fmt: skip
def test_a_faulty_template_is_refused_with_its_line(source: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        template(source).render(TALK.messages)
    assert f"the chat template{'' if message.startswith(('has', 'cannot')) else ','} {message}" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n.__init__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].pop('role') }}",
        "{% import 'os' as os %}",
        "{% extends '/etc/passwd' %}",
        "{{ (1).to_bytes(10 ** 9) }}",
        "{{ lipsum.__globals__ }}",
    ],
)
def test_there_is_no_way_out(source: str) -> None:
    messages = as_dicts(TALK)
    with pytest.raises(ConfigError, match="line 1"):
        template(source).render(TALK.messages)
    assert as_dicts(TALK) == messages


def repeated(body: str, start: str = "'ab'") -> str:
    return f"{{% set n = namespace(s={start}) %}}{{% for i in range(60) %}}{body}{{% endfor %}}{{{{ n.s | string }}}}"


ENDLESS = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "tree of macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "words": "{% for a in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "words in a macro": "{% macro f() %}{% for a in range(99999) %}"
    + "x" * 10_000
    + "{% endfor %}{% endmacro %}{{ f() }}",
    "contents": "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    "times": "{{ 'x' * 10**10 }}",
    "times list": "{{ [1] * 10**10 }}",
    "power": "{{ 10 ** 100000 }}",
    "product": repeated("{% set n.s = n.s * n.s %}", "12345"),
    "doubled by ~": repeated("{% set n.s = n.s ~ n.s %}"),
    "doubled by +": repeated("{% set n.s = n.s + n.s %}"),
    "doubled by list +": repeated("{% set n.s = n.s + n.s %}", "[1]"),
    "doubled by a block": repeated("{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}"),
    "doubled by replace": repeated("{% set n.s = n.s.replace('a', 'aaaa') %}"),
    "doubled by the filter": repeated("{% set n.s = n.s | replace('a', 'aaaa') %}"),
    "doubled by %": repeated("{% set n.s = '%s%s' % (n.s, n.s) %}"),
    "doubled by format": repeated("{% set n.s = '{0}{0}'.format(n.s) %}"),
    "doubled by join": repeated("{% set n.s = [n.s, n.s] | join %}"),
    "nested lists": repeated("{% set n.s = [n.s, n.s] %}"),
    "nested tuples": repeated("{% set n.s = (n.s, n.s) %}"),
    "nested dicts": repeated("{% set n.s = {1: n.s, 2: n.s} %}"),
    "nested by a call": repeated("{% set n.s = dict(a=n.s, b=n.s) %}"),
    "nested arguments": "{% set n = namespace(s=1) %}{% macro f() %}{% set n.s = varargs %}{% endmacro %}"
    "{% for i in range(60) %}{{ f(n.s, n.s) }}{% endfor %}{{ n.s }}",
    "nested by map": repeated("{% set n.s = ['', ''] | map('default', n.s, true) | list %}"),
    "wide number": "{{ '%999999999d' % 1 }}",
    "wide format": "{{ '{:999999999}'.format(1) }}",
    "computed width": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "many fields": "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "joined": "{{ 'x'.join(['y' * 1000] * 1000000) }}",
    "joined filter": "{{ (['x' * 1000] * 100000) | join }}",
    "wide json": "{{ [1] | tojson(indent=10**9) }}",
    "wide date": "{{ strftime_now('%999999999d') }}",
    "precise": "{{ 1.5 | round(10**9) }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_would_not_end_or_fill_the_memory_is_refused(name: str) -> None:
    start = time.thread_time()
    with pytest.raises(ConfigError, match="the chat template"):
        template(ENDLESS[name]).render(TALK.messages)
    assert time.thread_time() - start < 8


def test_time_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastserve.text.chat._SECONDS", 0.05)
    with pytest.raises(ConfigError, match=r"is not done after 0.05 s"):
        template(ENDLESS["loops"]).render(TALK.messages)


def test_long_conversations_are_not_taken_for_endless_ones(tokenizer: LanguageTokenizer) -> None:
    talk = Conversation((ASK, Message("assistant", "月" * 2_000_000)) + TALK.messages[1:] * 300)
    assert len(template(CHATML).render(talk.messages)) > 2_000_000
    short = Conversation(talk.messages[2:])
    assert template(MARKED).spans(short, tokenizer)[1].sum() > 600


def test_half_a_character_in_a_message_is_said(tokenizer: LanguageTokenizer) -> None:
    with pytest.raises(DataError, match="holds half a character"):
        template(CHATML).encode([Message("user", "a\ud800")], tokenizer)


def test_templates_share_nothing() -> None:
    made = template(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    )
    assert [made.render(TALK.messages), made.render([ASK]), made.render(TALK.messages)] == ["5", "1", "5"]


def test_tojson_is_that_of_transformers() -> None:
    assert template("{{ messages[0] | tojson }}").render([Message("user", "<a>'好'")]) == json.dumps(
        {"role": "user", "content": "<a>'好'"}, ensure_ascii=False
    )


def test_all_variables_of_the_settings_are_known(tmp_path: Path, tokenizer: LanguageTokenizer) -> None:
    tokenizer.save(tmp_path)
    config: dict[str, Any] = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    config["chat_template"] = "{{ bos_token }}{{ pad_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    made = LanguageTokenizer.read(tmp_path).template
    assert made is not None
    assert made.render([ASK]) == "<|begin|><|pad|>你好 "
