"""Multiple choice, cloze and preferences: which of several given texts a language model finds most probable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from fastserve.data.formats import open_reader
from fastserve.data.jsonrows import ALL
from fastserve.data.sources import find_sources
from fastserve.errors import DataError, WorkError
from fastserve.evaluation.bootstrap import DoubleArray
from fastserve.evaluation.checks import Check, Json
from fastserve.evaluation.findings import shorten
from fastserve.generation.likelihood import Likelihood, likelihoods
from fastserve.types import Message, Preference

if TYPE_CHECKING:
    from fastserve.bundle.writer import Writer

Prompt = str | Sequence[Message]
Score = Callable[[Sequence[tuple[Prompt, str]]], Sequence[Likelihood]]
"""How probable a model finds each text after its prompt."""
_MOST_ROW_BYTES = 8 << 20
_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and what may follow it; `answer` is the place of the right one. row: in the file, from 1."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    row: int = 0


@dataclass(frozen=True, slots=True)
class Cloze:
    """A prompt and the only right thing to follow it."""

    prompt: str
    completion: str
    row: int = 0


def scorer(writer: Writer) -> Score:
    """Likelihoods by a model, its prompts framed as they were in training."""

    def score(pairs: Sequence[tuple[Prompt, str]]) -> Sequence[Likelihood]:
        pipeline = writer.pipeline
        texts = pipeline.tokenizer.encode([text for _, text in pairs])
        ids = [
            (pipeline.ask(prompt).tolist(), texts.between(place, place + 1).values.tolist())
            for place, (prompt, _) in enumerate(pairs)
        ]
        return likelihoods(writer.network, ids)

    return score


# Reading


def read_items(address: str) -> list[Question | Cloze]:
    """Rows of a jsonl (or json) file.

    Each is `{"prompt" or "question", "choices": [...], "answer"}`, where the answer is the place of the right choice
    (from 0), its text, or its letter; or `{"prompt", "completion"}`. DataError lists the rows that are neither.
    """
    items: list[Question | Cloze] = []
    faults: list[str] = []
    for source in find_sources(address):
        if source.format not in ("jsonl", "json"):
            raise DataError(f"{source.address} is a {source.format} file; questions are read from jsonl or json")
        for block in open_reader(source, _MOST_ROW_BYTES).blocks([ALL]):
            faults += [f"row {bad.row}: {bad.reason}" for bad in block.bad]
            for row, value in zip(block.rows.tolist(), block.columns[ALL], strict=True):
                try:
                    items.append(_item(value, row))
                except DataError as error:
                    faults.append(f"row {row}: {error}")
    if faults:
        more = f", and {len(faults) - _MOST_SHOWN:,} rows more" if len(faults) > _MOST_SHOWN else ""
        raise DataError(f"{address} cannot be used to judge: {'; '.join(faults[:_MOST_SHOWN])}{more}")
    return items


def _item(value: Any, row: int) -> Question | Cloze:
    if not isinstance(value, Mapping):
        raise DataError("expected an object")
    prompt = _text(value, "prompt", "question")
    if "choices" not in value:
        return Cloze(prompt, _text(value, "completion"), row)
    found = value["choices"]
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(one, str) and one for one in found):
        raise DataError("'choices' must be a list of at least two texts, none of them empty")
    return Question(prompt, tuple(found), _answer(value.get("answer"), found), row)


def _text(value: Mapping[str, Any], *names: str) -> str:
    for name in names:
        if isinstance(value.get(name), str) and value[name]:
            return str(value[name])
    raise DataError(f"has no text in {' or '.join(repr(name) for name in names)}")


def _answer(answer: Any, found: Sequence[str]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(found):
        return answer
    if isinstance(answer, str) and answer in found:
        return found.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and 0 <= ord(answer.upper()) - ord("A") < len(found):
        return ord(answer.upper()) - ord("A")
    raise DataError(
        f"answer {answer!r} is none of the {len(found)} choices; expected a place from 0 to {len(found) - 1}, the text "
        "of a choice, or its letter"
    )


# Judging


def judge_items(items: Sequence[Question | Cloze], score: Score) -> list[Check]:
    """Accuracy on the questions, by the sum of log-probabilities and by their mean over characters (as `acc` and
    `acc_norm` of EleutherAI's lm-evaluation-harness), and on the cloze rows. DataError where there is no row."""
    if not items:
        raise DataError("there is nothing to judge; expected at least one question or cloze row")
    questions = [item for item in items if isinstance(item, Question)]
    cloze = [item for item in items if isinstance(item, Cloze)]
    return [*(_judge_questions(questions, score) if questions else ()), *(_judge_cloze(cloze, score) if cloze else ())]


def _judge_questions(questions: Sequence[Question], score: Score) -> Iterator[Check]:
    pairs = [(question.prompt, choice) for question in questions for choice in question.choices]
    starts = np.cumsum([0, *(len(question.choices) for question in questions)]).tolist()
    rows = [question.row for question in questions for _ in question.choices]
    logs = _logs(score(pairs), rows)
    lengths = np.array([len(choice) for _, choice in pairs])
    chance = float(np.mean([1 / len(question.choices) for question in questions])) * 100
    for name, figures, how in (
        ("Multiple choice", logs, "most probable"),
        ("Multiple choice by length", logs / lengths, "most probable for each of its characters"),
    ):
        chosen = [int(figures[start:end].argmax()) for start, end in pairwise(starts)]
        right = [choice == question.answer for choice, question in zip(chosen, questions, strict=True)]
        failures = [
            _failure(question, f"chose “{question.choices[choice]}”, right is “{question.choices[question.answer]}”")
            for question, choice, is_right in zip(questions, chosen, right, strict=True)
            if not is_right
        ]
        yield Check.of(name, f"the right choice is the {how}; chance gives {chance:.1f}%", right, failures)


def _judge_cloze(rows: Sequence[Cloze], score: Score) -> Iterator[Check]:
    found = score([(row.prompt, row.completion) for row in rows])
    logs = _logs(found, [row.row for row in rows])
    bits = -logs.sum() / math.log(2) / sum(len(row.completion) for row in rows)
    failures = [
        _failure(row, f"would not write “{shorten(row.completion)}”")
        for row, one in zip(rows, found, strict=True)
        if not one.greedy
    ]
    meaning = f"greedy decoding writes the completion; {bits:.2f} bits for each of its characters"
    yield Check.of("Cloze", meaning, [one.greedy for one in found], failures)


def judge_preferences(
    preferences: Sequence[Preference], score: Score, rows: Sequence[int] | None = None
) -> list[Check]:
    """How often the better answer is the more probable one, plainly and for each of its characters.

    rows: numbers in the user's file. DataError where there is no pair.
    """
    answers = [(pair.prompt, answer) for pair in preferences for answer in (pair.chosen, pair.rejected)]
    numbers = list(range(1, len(preferences) + 1)) if rows is None else list(rows)
    logs = _logs(score(answers), np.repeat(numbers, 2).tolist()) if preferences else np.zeros(0)
    lengths = np.array([len(answer) for _, answer in answers]).reshape(-1, 2)
    return win_rates(logs.reshape(-1, 2), lengths, [shorten(pair.chosen) for pair in preferences], numbers)


def win_rates(
    logs: DoubleArray, lengths: Any, texts: Sequence[str] | None = None, rows: Sequence[int] | None = None
) -> list[Check]:
    """logs: (N, 2), log-likelihoods of the better and the worse answer (or of any margin that is to be compared);
    lengths: (N, 2), their characters or tokens. Equal ones are no win. DataError where there is none."""
    numbers = range(1, len(logs) + 1) if rows is None else rows
    checks = []
    for name, figures, how in (
        ("Preferred wins", np.asarray(logs), "more probable"),
        ("Preferred wins by length", logs / np.maximum(lengths, 1), "more probable for its length"),
    ):
        wins = figures[:, 0] > figures[:, 1]
        failures: list[Json] = [
            {
                "row": int(numbers[place]),
                "text": "" if texts is None else texts[place],
                "why": f"{figures[place, 0]:.2f} against {figures[place, 1]:.2f}",
            }
            for place in np.flatnonzero(~wins).tolist()
        ]
        checks.append(Check.of(name, f"the preferred answer is {how} than the rejected one", wins.tolist(), failures))
    return checks


def _failure(item: Question | Cloze, why: str) -> Json:
    return {"row": item.row, "text": shorten(item.prompt), "why": why}


def _logs(found: Sequence[Likelihood], rows: Sequence[int]) -> DoubleArray:
    """(N,); WorkError where one is not a number."""
    logs = np.array([one.log for one in found], np.float64)
    bad = np.flatnonzero(np.isnan(logs))
    if len(bad):
        raise WorkError(
            f"the model gives row {rows[bad[0]]} a likelihood that is not a number: its weights are damaged or its "
            "training diverged; train again with a lower train.learning_rate"
        )
    return logs
