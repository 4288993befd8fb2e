"""Texts that must look a certain way: they do, whatever the network would rather write."""

from __future__ import annotations

import json
import re
import time

import pytest
from engines import greedy, ids, run
from writers import small_decoder, small_tokenizer

from fastserve.errors import ConfigError
from fastserve.generation.engine import Engine
from fastserve.generation.orders import EngineOptions, Grammar, Order
from fastserve.generation.sampling import Sampling

pytest.importorskip("llguidance")
TOKENIZER = small_tokenizer()
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["月光", "frost"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


def engine() -> Engine:
    network = small_decoder(TOKENIZER.vocabulary_size, context=128)
    return Engine(network, TOKENIZER, EngineOptions(precision="float32", profile_seconds=0), eos=[TOKENIZER.eos])


def text_of(grammar: Grammar, sampling: Sampling | None = None) -> str:
    wanted = sampling or Sampling(seed=5, max_tokens=100)
    outputs = run(engine(), [Order("a", [5, 6, 7], wanted, grammar=grammar)])["a", 0]
    assert outputs[-1].finish_reason == "stop"
    return "".join(one.text for one in outputs)


@pytest.mark.parametrize("seed", range(3))
def test_a_schema(seed: int) -> None:
    found = json.loads(text_of(Grammar("json_schema", json.dumps(SCHEMA)), Sampling(seed=seed, max_tokens=100)))
    assert found.keys() == {"name", "old"}
    assert found["name"] in ("月光", "frost")
    assert isinstance(found["old"], bool)


def test_an_expression_and_choices() -> None:
    assert re.fullmatch(r"[a-c]{3}-[0-9]+!", text_of(Grammar("regex", "[a-c]{3}-[0-9]{1,3}!")))
    assert text_of(Grammar("choice", '["疑是地上霜", "a \\"b\\"\\n"]'), greedy(60)) in ("疑是地上霜", 'a "b"\n')


def test_any_object_begins_as_one() -> None:
    outputs = run(engine(), [Order("a", [5, 6], Sampling(seed=1, max_tokens=9), grammar=Grammar("json_object"))])
    assert "".join(one.text for one in outputs["a", 0]).lstrip().startswith("{")


def test_neighbors_are_left_alone() -> None:
    alone = run(engine(), [Order("a", [5, 6], greedy())])["a", 0]
    free, bound = Order("a", [5, 6], greedy()), Order("b", [5, 6], greedy(40), grammar=Grammar("regex", "[0-9]{4}"))
    together = run(engine(), [free, bound])
    assert ids(together["a", 0]) == ids(alone)
    assert re.fullmatch("[0-9]{4}", "".join(one.text for one in together["b", 0]))


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("regex", "(("), "the regex that a text must follow cannot be used"),
        (Grammar("json_schema", "{"), "the json_schema that a text must follow cannot be used"),
        (Grammar("json_schema", '{"type": "unheard"}'), "cannot be used"),
        (Grammar("choice", "[]"), "must be a JSON list of strings"),
        (Grammar("choice", "x"), "must be a JSON list of strings"),
        (Grammar("choice", json.dumps(["a"] * 1001)), "1,001 choices"),
        (Grammar("regex", "a" * 70_000), "is too large"),
    ],
)
def test_grammars_that_are_refused(grammar: Grammar, message: str) -> None:
    one = engine()
    with pytest.raises(ConfigError, match=message):
        one.add(Order("a", [5], greedy(), grammar=grammar))
    assert not one.has_work


@pytest.mark.parametrize("expression", ["(((a{1,9999}){1,9999}){1,9999})", "(a|a|aa)*b", "(.*a){30}"])
def test_a_hard_expression_ends_in_time(expression: str) -> None:
    begun = time.monotonic()
    outputs = run(engine(), [Order("a", [5], greedy(10), grammar=Grammar("regex", expression))])["a", 0]
    assert outputs[-1].ends
    assert time.monotonic() - begun < 20


def test_a_grammar_needs_a_tokenizer() -> None:
    without = Engine(small_decoder(), None, EngineOptions(precision="float32", profile_seconds=0), eos=[1])
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        without.add(Order("a", [5], greedy(), grammar=Grammar("json_object")))
