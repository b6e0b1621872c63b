"""Jinja's filters and tests for chat templates, each charged for before it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

from jinja2 import Undefined, pass_context
from jinja2.runtime import Context

from edgellm.chat_budget import (
    OPERATION,
    Budget,
    BudgetExceededError,
    Cost,
    counted,
    printf_cost,
    shallow_size,
    text_size,
)

_LARGEST_INDENT = 32


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the chat templates of Hugging Face's transformers expect it: not escaped for HTML, as Jinja's own is."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


# --- costs: (budget, value, the filter's arguments) -> units ----------------------------------------------------------


def _free(budget: Budget, value: object, *args: object, **kwargs: object) -> int:
    return 0


def _by_name(budget: Budget, value: object, *args: object, **kwargs: object) -> int:
    # A name that does not exist is printed in an error message, with up to ten characters for one.
    return budget.printed_size(list(args)) + budget.printed_size(kwargs)


def _each(budget: Budget, value: object, *args: object, **kwargs: object) -> int:
    # For each item a test or an attribute is looked up by name; items that are left out are charged for here only.
    return _by_name(budget, value, *args, **kwargs) + 2 * OPERATION * (len(value) if isinstance(value, Sized) else 0)


def _shallow(budget: Budget, value: Any, *args: object, **kwargs: object) -> int:
    return shallow_size(value)


def _printed(factor: int) -> Cost:
    def cost(budget: Budget, value: object, *args: object, **kwargs: object) -> int:
        return factor * (budget.printed_size(value) + budget.size(list(args)) + budget.size(kwargs))

    return cost


def _sorted(budget: Budget, value: Sized, *args: object, **kwargs: object) -> int:
    count = len(value)
    return 2 * budget.size(value) * (1 + count.bit_length())


def _join(budget: Budget, value: Any, d: object = "", attribute: object = None) -> int:
    _check_path(attribute)
    return 3 * (budget.printed_size(value) + len(value) * budget.printed_size(d))


def _center(budget: Budget, value: object, width: int = 80) -> int:
    return 4 * (budget.printed_size(value) + max(int(width), 0))


def _indent(budget: Budget, s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> int:
    lines: int = 1 + sum(map(s.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
    budget.charge(10 * text_size(s))
    indention = 64 + 4 * (len(width) if isinstance(width, str) else max(int(width), 0))
    return 4 * text_size(s) + lines * (64 + indention)


def _replace(budget: Budget, s: object, old: object, new: object, count: int | None = None) -> int:
    budget.charge(budget.printed_size(s) + budget.printed_size(old))
    text, wanted = str(s), str(old)
    places = text.count(wanted)
    places = places if count is None or count < 0 else min(places, count)
    return text_size(text) * (1 + min(len(wanted), 100) // 4) + 6 * (
        text_size(text) + places * budget.printed_size(new)
    )


def _round(budget: Budget, value: object, precision: int = 0, method: str = "common") -> int:
    if abs(int(precision)) > 100:
        raise BudgetExceededError("it rounds to more than 100 digits")
    return budget.size(value)


def _sum(budget: Budget, iterable: Any, attribute: object = None, start: object = 0) -> int:
    # Adding up lists would copy the first as often as there are lists.
    if not isinstance(start, int | float):
        raise BudgetExceededError("it sums up something else than numbers")
    return budget.size(iterable)


def _trim(budget: Budget, value: object, chars: str | None = None) -> int:
    return budget.printed_size(value) * (1 + len(chars or "") // 4)


def _batch(budget: Budget, value: Any, linecount: int, fill_with: object = None) -> int:
    return shallow_size(value) + 64 * len(value) + (0 if fill_with is None else 8 * max(int(linecount), 0))


def _format(budget: Budget, value: object, *args: Any, **kwargs: Any) -> int:
    budget.charge(budget.printed_size(value))
    return printf_cost(budget, str(value), kwargs or args)


def _json(
    budget: Budget,
    value: object,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> int:
    width = len(indent) if isinstance(indent, str) else max(int(indent or 0), 0)
    if width > _LARGEST_INDENT:
        raise BudgetExceededError(f"it indents JSON by more than {_LARGEST_INDENT}")
    size = budget.size(value)
    # Control characters take six characters each, and every value may stand on a line of its own, 64 levels deep.
    return 6 * size + size // 32 * (64 * width + budget.size(separators))


# Costly ones of Jinja's filters that no chat template needs.
_LEFT_OUT = {"pprint", "striptags", "urlize", "wordwrap", "xmlattr"}
# Any other costs twice the size of what it is given.
_COSTS: Mapping[str, Cost] = {
    **dict.fromkeys(("default", "d", "first", "last", "length", "count", "abs", "random", "items"), _free),
    **dict.fromkeys(("map", "select", "selectattr", "reject", "rejectattr"), _each),
    "attr": _by_name,
    **dict.fromkeys(("list", "reverse", "slice"), _shallow),
    **dict.fromkeys(("sort", "dictsort", "groupby", "unique", "min", "max"), _sorted),
    **dict.fromkeys(("escape", "e", "forceescape", "upper", "lower", "capitalize", "int", "float"), _printed(10)),
    **dict.fromkeys(("title", "wordcount", "urlencode"), _printed(100)),
    "join": _join,
    "center": _center,
    "indent": _indent,
    "replace": _replace,
    "round": _round,
    "sum": _sum,
    "trim": _trim,
    "batch": _batch,
    "format": _format,
    "tojson": _json,
}
# These take the name of an attribute, "a.b.c" or even several, "a,b,c", as ``attribute`` or among so many of their
# first arguments; each step is a look-up for each item.
_BY_ATTRIBUTE = {
    **{"map": 0, "selectattr": 1, "rejectattr": 1, "sum": 1, "groupby": 1},
    **{"sort": 3, "unique": 2, "min": 2, "max": 2},
}
_LONGEST_PATH = 16
# These look at what they are given one by one, or only at its beginning; all others get lists instead of iterators.
_LAZY = {"default", "d", "first", "length", "count"}
# Tests that look at the kind of a value only.
_CHEAP_TESTS = {
    *("odd", "even", "defined", "undefined", "none", "boolean", "false", "true", "integer", "float", "string"),
    *("mapping", "number", "sequence", "iterable", "callable", "sameas", "escaped"),
}


class _Original:
    """Key under which a filter or test itself is kept: no name in a template can be equal to it."""


def guarded_filters(originals: Mapping[str, Any], budget_of: Callable[[], Budget]) -> dict[Any, Any]:
    """Filters that are charged for.

    Args:
        originals: Jinja's filters by name.
        budget_of: gives the budget of the rendering that is going on.
    """
    filters: dict[Any, Any] = {}
    for name, original in {**originals, "tojson": to_json}.items():
        if name not in _LEFT_OUT:
            key = _Original()
            filters[key] = original
            filters[name] = _guarded_filter(name, key, budget_of)
    return filters


def _guarded_filter(name: str, key: Any, budget_of: Callable[[], Budget]) -> Callable[..., Any]:
    cost = _COSTS.get(name, _printed(2))
    lazy = name in _LAZY

    # With pass_context Jinja does not compute the filter of a constant while it compiles the template.
    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of()
        if not lazy and isinstance(value, Iterator):
            value = list(counted(budget, value))
        if name in _BY_ATTRIBUTE:
            _check_path(*args[: _BY_ATTRIBUTE[name]], kwargs.get("attribute"))
        # What is undefined is printed as nothing.
        budget.charge(OPERATION + cost(budget, "" if isinstance(value, Undefined) else value, *args, **kwargs))
        result = context.environment.call_filter(key, value, args, kwargs, context)
        return counted(budget, result) if isinstance(result, Iterator) else result

    return run


def _check_path(*given: object) -> None:
    for path in given:
        if isinstance(path, str) and path.count(".") + path.count(",") > _LONGEST_PATH:
            raise BudgetExceededError(f"it looks up attributes over more than {_LONGEST_PATH} steps")


def guarded_tests(originals: Mapping[str, Any], budget_of: Callable[[], Budget]) -> dict[Any, Any]:
    """Jinja's tests, charged for where they look deeper than at the kind of a value."""
    tests: dict[Any, Any] = {}
    for name, original in originals.items():
        if name in _CHEAP_TESTS:
            tests[name] = original
        else:
            key = _Original()
            tests[key] = original
            tests[name] = _guarded_test(key, budget_of)
    return tests


def _guarded_test(key: Any, budget_of: Callable[[], Budget]) -> Callable[..., bool]:
    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> bool:
        budget = budget_of()
        # Looking for a text in a text takes up to 25 steps a character, see chat_budget.py.
        budget.charge(OPERATION + budget.size(value) + 25 * budget.size(list(args)))
        return bool(context.environment.call_test(key, value, args, kwargs, context))

    return run
