"""Jinja for templates that come from strangers: no way out of it, and an end to what they may spend.

Templates see strings, numbers, lists and dicts, harmless methods and filters, and nothing else: Jinja's own sandbox
keeps the way out shut, but it lets a template run forever and fill the memory. So every round of a loop, call,
operator, filter, list and piece of output is charged to a `Budget`, the large ones before they are made.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

START, STOP = "\ufdd0", "\ufdd1"
"""Around what a `{% generation %}` block says, where the budget asks for marks; no text has these characters."""

_BUDGET = " budget"  # a name that no template can write
_WIDTH = re.compile(r"\d{4,}|\*|\{[^{}]*\{")  # in a format: blanks without end
_LOOK = 256  # steps between looks at the clock, which can cost as much as they do
_MOST_BITS = 10_000  # of a whole number
_MOST_FORMAT = 200  # characters of a format of dates
_STRING_METHODS = frozenset({
    "capitalize", "casefold", "count", "endswith", "find", "format", "format_map", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit",
    "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
})  # fmt: skip
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape", "groupby",
    "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe",
    "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper", "wordcount",
)  # fmt: skip


class Exhausted(Exception):
    """A template that wants more than it may have."""


class Declined(Exception):
    """`raise_exception` in a template: it does not take the conversation."""


class Budget:
    """What one rendering may still spend: steps, characters made, seconds of this thread's processor time.

    marks: whether START and STOP are written.
    """

    def __init__(self, steps: int, characters: int, seconds: float, *, marks: bool = False) -> None:
        self.steps, self.characters, self.seconds = steps, characters, seconds
        self.marks = marks
        self._end: float | None = None

    def spend(self, characters: int = 0) -> None:
        """One step and so many characters. Exhausted where they are not there."""
        self.steps -= 1
        self.characters -= characters
        if self.characters < 0:
            raise Exhausted("it makes far more text than it was given; look for a loop or a macro that repeats it")
        if self.steps < 0:
            raise Exhausted("it takes too many steps; look for a loop without an end, or for loops in each other")
        if not self.steps % _LOOK:
            self._look_at_the_clock()

    def _look_at_the_clock(self) -> None:
        now = time.thread_time()
        if self._end is None:  # most renderings are done before this
            self._end = now + self.seconds
        if now > self._end:
            raise Exhausted(f"it is not done after {self.seconds:g} s; look for loops in each other")

    def weigh(self, value: Any) -> None:
        """Spend the characters and parts of a value, what occurs in it several times as often as it occurs.

        A list that holds another twice, which holds another twice, and so on, is small until it is written.
        """
        waiting, weight = [value], 0
        while waiting:
            part = waiting.pop()
            if isinstance(part, str | list | tuple | dict):
                weight += len(part) + 1
                if weight > self.characters:
                    break
            if isinstance(part, dict):
                waiting.extend(part)
                waiting.extend(part.values())
            elif isinstance(part, list | tuple):
                waiting.extend(part)
        self.spend(weight)


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox with limits. Only `render` renders its templates."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimizer computes constants, for which there is no budget yet
            finalize=_written,
            extensions=[Generation, jinja2.ext.loopcontrols],
        )
        own: dict[str, Callable[..., Any]] = {
            "tojson": jinja2.pass_context(_to_json),
            "join": jinja2.pass_context(_join),
            "replace": jinja2.pass_context(_replace),
            "round": jinja2.pass_context(_round),
        }
        self.filters = {**{name: _charged(self.filters[name]) for name in _FILTERS}, **own}
        self.globals = {
            "range": jinja2.sandbox.safe_range,
            "cycler": jinja2.utils.Cycler,
            "joiner": jinja2.utils.Joiner,
            "dict": _dict,
            "namespace": Namespace,
            "raise_exception": _decline,
            "strftime_now": _strftime_now,
        }

    def render(self, template: jinja2.Template, variables: Mapping[str, Any], budget: Budget) -> str:
        context = template.new_context({**variables, _BUDGET: budget})
        try:
            return "".join(template.root_render_func(context))
        except Exception:
            self.handle_exception()  # raises it with the lines of the template

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Meters(self).visit(super()._parse(source, name, filename))  # type: ignore[no-any-return]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | int | float):
            return isinstance(obj, str) and attr in _STRING_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"templates may not use '{attribute}' of a {type(obj).__name__}")

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if getattr(function, "__self__", None) is self:
            return function(context, *args)  # a meter
        budget = budget_of(context)
        budget.weigh((args, kwargs))
        bound = getattr(function, "__wrapped__", function)
        if isinstance(text := getattr(bound, "__self__", None), str):
            if bound.__name__ == "join":
                return _join(context, args[0], text)
            _foresee(budget, bound.__name__, text, (args, kwargs))
        value = super().call(context, function, *args, **kwargs)
        budget.weigh(value)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = budget_of(context)
        if operator == "%" and isinstance(left, str):
            _foresee(budget, "format", left, right, mark="%")
        elif operator in ("*", "**"):
            _foresee_product(budget, operator, left, right)
        value = super().call_binop(context, operator, left, right)
        budget.weigh(value)
        return value

    # Meters, which `_Meters` puts into templates

    def tick(self, context: Context, characters: int) -> bool:
        """In every round of a loop and every call of a macro, which writes so many characters at the most."""
        budget_of(context).spend(characters)
        return True

    def concatenated(self, context: Context, *parts: Any) -> str:
        return "".join([_written(context, part) for part in parts])

    def weighed(self, context: Context, value: Any) -> Any:
        budget_of(context).weigh(value)
        return value


def budget_of(context: Context) -> Budget:
    budget: Budget = context.parent[_BUDGET]
    return budget


@jinja2.pass_context
def _written(context: Context, value: Any) -> str:
    """Everything that a template writes, save its own words."""
    written = str(value)
    budget_of(context).spend(len(written))
    return written


class _Meters(NodeTransformer):
    """Puts calls of the meters into the tree of a template."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def _call(self, meter: str, arguments: list[nodes.Expr], node: nodes.Node) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(meter), arguments, [], None, None)
        call.set_environment(self.environment)
        call.set_lineno(node.lineno)
        return call

    def _ticking(self, node: Any) -> Any:
        words = sum(len(data.data) for part in node.body for data in _with_self(part, nodes.TemplateData))
        self.generic_visit(node)
        tick = nodes.ExprStmt(self._call("tick", [nodes.Const(words)], node), lineno=node.lineno)
        node.body.insert(0, tick)
        if getattr(node, "test", None) is not None:
            node.test = nodes.And(self._call("tick", [nodes.Const(0)], node), node.test, lineno=node.lineno)
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_FilterBlock = visit_AssignBlock = _ticking

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return self._call("concatenated", node.nodes, node)

    def _weighing(self, node: Any) -> Any:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._call("weighed", [node], node)

    visit_List = visit_Tuple = visit_Dict = _weighing


def _with_self(node: nodes.Node, kind: type[Any]) -> Iterator[Any]:
    if isinstance(node, kind):
        yield node
    yield from node.find_all(kind)


class Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: what the assistant says."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own type

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked", [nodes.ContextReference()]), [], [], body).set_lineno(line)

    def _marked(self, context: Context, caller: Callable[[], str]) -> str:
        said = caller()
        return f"{START}{said}{STOP}" if budget_of(context).marks else said


class Namespace(jinja2.utils.Namespace):
    """Whose names do not begin with an underscore, and that does not write what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}: names begin with a letter")


# What templates call


def _decline(message: str) -> NoReturn:
    raise Declined(str(message))


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _strftime_now(form: str) -> str:
    if len(form) > _MOST_FORMAT or _WIDTH.search(form):
        raise Exhausted("it formats the date with a width")
    return datetime.now().strftime(form)


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja that charges what it gives."""
    wants = getattr(function, "jinja_pass_arg", None)  # which first argument, see jinja2.pass_context

    @jinja2.pass_context
    @wraps(function)
    def charged(context: Context, *args: Any, **kwargs: Any) -> Any:
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        before = [first[wants.name]] if wants is not None else []
        value = function(*before, *args, **kwargs)
        budget_of(context).weigh(value)
        return value

    return charged


def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers defines it: nothing is escaped for HTML."""
    budget_of(context).weigh(value)
    widest = max((len(part) for part in separators or ()), default=0)
    if widest > 16 or (isinstance(indent, str) and len(indent) > 16) or (isinstance(indent, int) and indent > 16):
        raise Exhausted("it writes JSON with over 16 blanks at once")
    written = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    budget_of(context).spend(len(written))
    return written


def _join(context: Context, parts: Iterable[Any], separator: Any = "", attribute: str | None = None) -> str:
    if attribute is not None:
        parts = (context.environment.getattr(part, attribute) for part in parts)
    budget, between = budget_of(context), str(separator)
    kept = []
    for part in parts:
        kept.append(_written(context, part))
        budget.spend(len(between))
    return between.join(kept)


def _replace(context: Context, value: Any, old: str, new: str, count: int | None = None) -> str:
    text, wanted = str(value), -1 if count is None else count
    _foresee(budget_of(context), "replace", text, ((old, new), {}))
    return text.replace(str(old), str(new), wanted)


def _round(context: Context, value: Any, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > 100:
        raise Exhausted("it rounds to over 100 digits")
    return jinja2.filters.do_round(value, precision, method)  # type: ignore[arg-type]


# What will be large


def _foresee(budget: Budget, name: str, text: str, given: Any, *, mark: str = "{") -> None:
    """Charge what a method of a string is about to make, where that may be much longer than what it is given."""
    if name == "replace":
        old, new = (*given[0], "", "")[:2]
        budget.spend(len(text) + text.count(str(old)) * len(str(new)))
    elif name in ("format", "format_map"):
        if _WIDTH.search(text):
            raise Exhausted("it formats a string with a width of thousands, or one that is computed")
        for _ in range(text.count(mark)):
            budget.weigh(given)


def _foresee_product(budget: Budget, operator: str, left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int) and times > 0:
            budget.spend(len(many) * times)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * abs(right)
        if bits > _MOST_BITS:
            raise Exhausted("it computes a number of thousands of digits")
