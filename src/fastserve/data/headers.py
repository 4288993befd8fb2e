"""Whether the first row of a csv or tsv names its columns, and what names mean to people."""

from __future__ import annotations

import re
from collections.abc import Sequence

TEXT_NAMES = (
    "text", "sentence", "content", "review", "comment", "title", "question", "body", "message", "document", "query",
    "utterance", "tweet", "description", "headline", "input",
    "文本", "内容", "评论", "句子", "标题", "问题", "正文", "文字",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "categories", "sentiment", "target", "tag", "tags", "polarity", "intent",
    "topic", "output", "y", "标签", "类别", "分类", "情感", "类目", "标注",
)  # fmt: skip
OTHER_NAMES = (
    "id", "index", "idx", "domain", "source", "url", "date", "time", "user", "name", "score", "rating", "split", "fine",
)  # fmt: skip
_KNOWN = {*TEXT_NAMES, *LABEL_NAMES, *OTHER_NAMES}
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")


def words(name: str) -> list[str]:
    """The words of a column name: `review_Text` to review, text."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[\W_]+", parted.casefold()) if word]


def is_header(first: Sequence[str], rest: Sequence[Sequence[str]], expected: Sequence[str]) -> bool:
    """Whether the first row holds names, given rows below it and the names that the user wrote."""
    if any(name in first for name in expected):
        return True
    cells = [cell.strip().lstrip("#") for cell in first]
    if any(cell.casefold() in _KNOWN for cell in cells):
        return True
    if any(not cell or _NUMBER.fullmatch(cell) or len(cell) > 40 for cell in cells[1:] or cells):
        return False
    if len(cells[0]) > 40 or _NUMBER.fullmatch(cells[0]):
        return False
    below = [{row[index].strip() for row in rest} for index in range(len(cells))]
    if any(cell in values for cell, values in zip(cells, below, strict=True)):
        return False  # a label, seen again further down
    return all(re.fullmatch(r"[\w .\-]{1,30}", cell) for cell in cells)


def column_names(header: Sequence[str]) -> list[str]:
    """Names made unique; nameless columns (an index that pandas wrote) are called by their position."""
    names: list[str] = []
    for position, cell in enumerate(header, start=1):
        name = base = cell.strip() or f"column{position}"
        number = 2
        while name in names:
            name, number = f"{base}.{number}", number + 1
        names.append(name)
    return names
