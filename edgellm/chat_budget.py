"""What rendering a chat template may cost, and what each operation on its values costs.

A template comes with the model file, from anywhere. Jinja's sandbox keeps it from Python's internals, but not from
asking for ``'a' * 10**10`` or looping for ever. No signal, thread or process can stop that well: one operation written
in C cannot be interrupted, and a process per answer is slow. So every operation is charged for *before* it runs, in
units of about a byte touched or made, and a template that has used up its budget is stopped. The bound on the sum is a
bound on the time and, as no operation makes more bytes than it is charged for, on the memory as well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from string import Formatter
from types import MethodType
from typing import Any

# For the shortest conversation: about half a second of work, and less than 50 MB of memory.
BASE_BUDGET = 40_000_000
# Long conversations may cost more; real templates touch each character some ten times.
BUDGET_PER_INPUT_BYTE = 100
# The clock is the second guard, should an estimate be wrong. CPU time of this thread: a busy machine is no fault.
SECONDS = 2.0
SECONDS_PER_INPUT_BYTE = 1e-6
_UNITS_BETWEEN_LOOKS = 500_000

OPERATION = 256
# Python's own limit on printing integers is 4,300 digits, about as many bits.
LARGEST_INT_BITS = 16_384
DEEPEST_NESTING = 100

Cost = Callable[..., int]


class BudgetExceededError(Exception):
    """The template asks for more than rendering a conversation can need."""


class Budget:
    """Counts down the units one rendering may still use.

    Args:
        input_bytes: size of what the template is given.
    """

    def __init__(self, input_bytes: int) -> None:
        self.left = BASE_BUDGET + BUDGET_PER_INPUT_BYTE * input_bytes
        self._seconds = SECONDS + SECONDS_PER_INPUT_BYTE * input_bytes
        self._started = time.thread_time()
        self._next_look = self.left - _UNITS_BETWEEN_LOOKS

    def charge(self, cost: int) -> None:
        """Raises BudgetExceededError if ``cost`` is more than is left."""
        self.left -= cost
        if self.left < self._next_look:
            self._look()

    def _look(self) -> None:
        self._next_look = self.left - _UNITS_BETWEEN_LOOKS
        if self.left < 0:
            raise BudgetExceededError("it asks for more work or memory than a conversation can need")
        if time.thread_time() - self._started > self._seconds:
            raise BudgetExceededError(f"it has run for over {self._seconds:.1f} seconds")

    def size(self, value: object) -> int:
        """About the bytes that comparing, hashing or printing ``value`` touches, with all it holds.

        An object that is held twice counts twice: a list that holds one list twice, and that another one twice, and so
        on, is small in memory, yet printing it would never end.
        """
        if type(value) is str:
            return text_size(value)
        if value is None or isinstance(value, _SMALL):
            return 32
        return self._walk(value)

    def _walk(self, value: Any) -> int:
        total = 0
        pending: list[tuple[Any, int]] = [(value, 0)]
        while pending:
            item, depth = pending.pop()
            if depth > DEEPEST_NESTING:
                raise BudgetExceededError(f"it nests values more than {DEEPEST_NESTING} deep")
            if isinstance(item, str):
                total += text_size(item)
            elif isinstance(item, int):
                total += 32 + _checked_bits(item) // 8
            elif isinstance(item, Mapping):
                total += 256 + 256 * len(item)
                self._check(total)
                pending.extend((part, depth + 1) for pair in item.items() for part in pair)
            elif isinstance(item, range):
                total += 64 + 8 * len(item)
            elif isinstance(item, _COLLECTIONS):
                parts: Any = item
                total += 256 + 128 * len(parts)
                self._check(total)
                pending.extend((part, depth + 1) for part in parts)
            else:
                total += 64
                if isinstance(item, MethodType):  # printed with the object it belongs to
                    pending.append((item.__self__, depth + 1))
            self._check(total)
        return total

    def _check(self, cost: int) -> None:
        if cost > self.left:
            self.charge(cost)

    def printed_size(self, value: object) -> int:
        """Bytes of ``str(value)``, at most. Inside a list one character may become ten, as U+E0001 does."""
        return self.size(value) * (1 if isinstance(value, str | None | float) else 10)


_SMALL = (bool, float)
_COLLECTIONS: tuple[type, ...] = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))


def text_size(text: str) -> int:
    """Bytes a text takes up, at most: whether it is ASCII is known at once, how wide its characters are is not."""
    return 64 + (len(text) if text.isascii() else 4 * len(text))


def shallow_size(value: Any) -> int:
    """Bytes of a list of the members of ``value``, when each of them is made anew."""
    if isinstance(value, str):
        return 64 + len(value) * (16 if value.isascii() else 96)
    return 64 + 64 * len(value)


def _checked_bits(number: int) -> int:
    bits = number.bit_length()
    if bits > LARGEST_INT_BITS:
        raise BudgetExceededError(f"it makes a number of more than {LARGEST_INT_BITS} bits")
    return bits


def integer_operation(operator: str, left: int, right: int) -> int:
    """Cost of an operator on two whole numbers; raises BudgetExceededError if the result is too large."""
    bits = _checked_bits(left) + _checked_bits(right)
    if operator == "**" and right > 0 and left.bit_length() * right > LARGEST_INT_BITS:
        raise BudgetExceededError(f"it makes a number of more than {LARGEST_INT_BITS} bits")
    return bits


# --- methods of values ------------------------------------------------------------------------------------------------
# Each function below takes the budget, the value and the method's arguments, and gives the cost of the call.


def _search(text: str, wanted: str) -> int:
    """Finding ``wanted``: CPython takes up to len(text) * min(len(wanted), 100) steps for it, some at a time."""
    return text_size(text) * (1 + min(len(wanted), 100) // 4)


def _search_backwards(text: str, wanted: str) -> int:
    """From the right there is no fast way for long strings."""
    return text_size(text) * (1 + len(wanted) // 4)


def _find(budget: Budget, text: str, wanted: str, *place: int) -> int:
    return _search(text, wanted)


def _find_backwards(budget: Budget, text: str, wanted: str, *place: int) -> int:
    return _search_backwards(text, wanted)


def _either_end(budget: Budget, text: str, wanted: object, *place: int) -> int:
    return budget.size(wanted)


def _strip(budget: Budget, text: str, characters: str | None = None) -> int:
    return text_size(text) * (1 + len(characters or "") // 4)


def _pieces(text: str, separator: str | None, limit: int) -> int:
    count = len(text) // 2 + 1 if separator is None else text.count(separator) + 1 if separator else 1
    return min(count, limit + 1) if limit >= 0 else count


def _split(budget: Budget, text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    budget.charge(_search(text, sep or ""))
    return text_size(text) + 96 * _pieces(text, sep, maxsplit)


def _split_backwards(budget: Budget, text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    budget.charge(_search_backwards(text, sep or ""))
    return text_size(text) + 96 * _pieces(text, sep, maxsplit)


def _split_lines(budget: Budget, text: str, keepends: bool = False) -> int:
    budget.charge(10 * text_size(text))
    return text_size(text) + 96 * sum(map(text.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))


def _replace(budget: Budget, text: str, old: str, new: str, count: int = -1) -> int:
    budget.charge(_search(text, old))
    places = text.count(old)
    places = min(places, count) if count >= 0 else places
    width = 1 if text.isascii() and new.isascii() else 4
    return text_size(text) + width * (len(text) + places * len(new))


def _join(budget: Budget, text: str, parts: Any) -> int:
    return 4 * (budget.size(parts) + text_size(text) * len(parts))


def _pad(budget: Budget, text: str, width: int, filler: str = " ") -> int:
    return 4 * (text_size(text) + _checked_width(width))


def _expand_tabs(budget: Budget, text: str, tabsize: int = 8) -> int:
    return 4 * (text_size(text) + text.count("\t") * _checked_width(tabsize))


def _checked_width(width: int) -> int:
    return max(int(width), 0)


def _of_text(factor: int) -> Cost:
    return lambda budget, text, *args: factor * text_size(text)


def _free(budget: Budget, value: object, *args: object) -> int:
    return 0


def _shallow(budget: Budget, value: Any) -> int:
    return shallow_size(value)


def _lookup(budget: Budget, value: Any, *args: object) -> int:
    return budget.size(list(args))


def _whole(budget: Budget, value: Any, *args: object) -> int:
    # What is not found is printed in an error message.
    return budget.size(value) + budget.printed_size(list(args))


# The methods a template may call, by the type of the value. Case mapping makes up to three characters of one.
METHODS: Mapping[type, Mapping[str, Cost]] = {
    str: {
        **dict.fromkeys(("strip", "lstrip", "rstrip"), _strip),
        **dict.fromkeys(("lower", "upper", "casefold", "swapcase", "capitalize", "title"), _of_text(8)),
        **dict.fromkeys(("isalpha", "isalnum", "isdigit", "isnumeric", "isdecimal"), _of_text(1)),
        **dict.fromkeys(("isspace", "islower", "isupper", "istitle", "isascii"), _of_text(1)),
        **dict.fromkeys(("isidentifier", "isprintable"), _of_text(1)),
        **dict.fromkeys(("find", "index", "count", "partition"), _find),
        **dict.fromkeys(("rfind", "rindex", "rpartition"), _find_backwards),
        **dict.fromkeys(("startswith", "endswith"), _either_end),
        **dict.fromkeys(("removeprefix", "removesuffix"), _find),
        **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _pad),
        "split": _split,
        "rsplit": _split_backwards,
        "splitlines": _split_lines,
        "replace": _replace,
        "join": _join,
        "expandtabs": _expand_tabs,
    },
    dict: {**dict.fromkeys(("keys", "values", "items"), _free), "get": _lookup, "copy": _shallow},
    list: {"count": _whole, "index": _whole, "copy": _shallow},
    tuple: {"count": _whole, "index": _whole},
    int: {"bit_length": _free},
    float: {"is_integer": _free},
}


def methods_of(value: object) -> Mapping[str, Cost]:
    """The methods of ``value`` a template may call, with their costs."""
    return next((methods for kind, methods in METHODS.items() if isinstance(value, kind)), {})


def method_cost(
    budget: Budget, value: object, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int | None:
    """Cost of ``value.name(*args, **kwargs)``; None if templates may not call it."""
    cost = methods_of(value).get(name)
    if cost is None:
        return None
    # Markup escapes what it is given: five characters for one, at most.
    escaping = 1 if type(value) in METHODS else 6
    return escaping * (cost(budget, value, *args, **kwargs) + sum(map(budget.size, args)))


# --- formatting -------------------------------------------------------------------------------------------------------

_LARGEST_FIELD = 1000
_FIELD = 1024
_PRINTF_FIELD = re.compile(r"[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?[hlL]?")


def printf_cost(budget: Budget, text: str, values: object) -> int:
    """Cost of ``text % values``; raises BudgetExceededError for a field too wide, or as wide as one of the values."""
    budget.charge(_FIELD * text.count("%"))
    return _format_cost(budget, text, values, list(_printf_fields(text)))


def _printf_fields(text: str) -> Iterator[str]:
    """Width and precision of each field, read as Python reads them."""
    place = text.find("%")
    while place >= 0:
        place += 1
        if text.startswith("(", place):
            open_brackets = 1
            while open_brackets and place + 1 < len(text):
                place += 1
                open_brackets += (text[place] == "(") - (text[place] == ")")
            place += 1
        field = _PRINTF_FIELD.match(text, place)
        if field:  # it always matches, if only nothing
            yield f"{field[1]} {field[2] or ''}"
            place = field.end() + 1
        place = text.find("%", place)


def format_cost(budget: Budget, text: str, values: object) -> int:
    """Cost of ``text.format(...)``; raises BudgetExceededError as ``printf_cost`` does."""
    budget.charge(_FIELD * text.count("{"))
    specifications = [spec or "" for _, field, spec, _ in Formatter().parse(text) if field is not None]
    return _format_cost(budget, text, values, specifications)


def _format_cost(budget: Budget, text: str, values: object, fields: list[str]) -> int:
    width = 0
    for field in fields:
        numbers = re.findall(r"\d+", field)
        wide = any(len(number) > 9 or int(number) > _LARGEST_FIELD for number in numbers)
        if wide or "*" in field.split(" ") or "{" in field:
            raise BudgetExceededError(f"it formats a field wider than {_LARGEST_FIELD} characters, or of unknown width")
        width += sum(map(int, numbers))
    return 6 * (text_size(text) + width + len(fields) * budget.printed_size(values))


def counted(budget: Budget, items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each charged for as it is taken."""
    for item in items:
        budget.charge(OPERATION)
        yield item
