"""A Jinja environment for chat templates from untrusted files: no way out, no end of time or memory.

Three walls:

- Jinja's own immutable sandbox, narrowed: a template reaches only the attributes and methods listed here, and calls
  only the functions it is given and the macros it defines.
- Before it is compiled, the template's syntax tree is rewritten so that each operation that takes more than a moment
  passes through a function that charges it to a budget (see chat_budget.py): loops, comparisons, slices, printing.
- Operators, calls, filters and tests, which Jinja lets an environment intercept, are charged in the same way.

Statements and expressions not known here are refused, so that a new version of Jinja opens no hole.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence, Sized
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from edgellm.chat_budget import (
    OPERATION,
    Budget,
    BudgetExceededError,
    format_cost,
    integer_operation,
    method_cost,
    methods_of,
    printf_cost,
    shallow_size,
    text_size,
)
from edgellm.chat_filters import guarded_filters, guarded_tests

FILE_NAME = "<chat template>"
LARGEST_SOURCE = 64 * 1024
LARGEST_TREE = 10_000

_LONGEST_DATE_FORMAT = 256
_MOST_ARGUMENTS = 256
_DEEPEST_NESTING = 20
# A key that is not found is printed in an error message, with up to ten characters for one.
_PER_KEY = 10
_NODE = 96
_DATA_TYPES = (str, int, float, list, tuple, dict, range, type(None))


class RefusedError(jinja2.TemplateError):
    """The template itself called raise_exception."""


class _QuietNamespace(Namespace):
    """A namespace that does not print what it holds, which may be itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Format:
    """The ``format`` method of a string: charged for, and unable to reach hidden attributes."""

    def __init__(self, text: str, sandboxed: Callable[..., str], budget_of: Callable[[], Budget]) -> None:
        self._text = text
        self._sandboxed = sandboxed
        self._budget_of = budget_of

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        budget = self._budget_of()
        budget.charge(format_cost(budget, self._text, [*args, *kwargs.values()]))
        return self._sandboxed(*args, **kwargs)


class _GenerationTag(Extension):
    """``{% generation %}``, with which transformers marks what the assistant says; here its content is just printed."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: object) -> None:
    raise RefusedError(str(message))


def _dict(source: Any = (), /, **kwargs: Any) -> dict[Any, Any]:
    # Not the class itself: dict[...] would make something that is neither charged for nor useful.
    if not isinstance(source, dict) and not all(isinstance(pair, list | tuple) for pair in source):
        raise TypeError("dict and namespace take a mapping or a list of pairs")
    return dict(source, **kwargs)


def _namespace(source: Any = (), /, **kwargs: Any) -> Namespace:
    return _QuietNamespace(_dict(source, **kwargs))


def _strftime_now(format: str) -> str:
    # glibc pads fields to any width a format names, up to 256 bytes for each byte of it.
    if len(format) > _LONGEST_DATE_FORMAT:
        raise BudgetExceededError(f"its date format is longer than {_LONGEST_DATE_FORMAT} characters")
    return datetime.now().strftime(format)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders one chat template; behaves as transformers' ``apply_chat_template`` for honest ones.

    ``budget`` must be a fresh one before each rendering. Not for several threads at once.
    """

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.budget = Budget(0)

        def budget_of() -> Budget:
            return self.budget

        self._budget_of = budget_of
        self._functions: dict[str, Callable[..., Any]] = {
            "range": safe_range,
            "dict": _dict,
            "namespace": _namespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.globals = dict(self._functions)
        # Names that cannot be written in a template, for the guards that the rewritten syntax tree calls.
        self.filters = {**guarded_filters(self.filters, budget_of), **self._guards()}
        self.tests = guarded_tests(self.tests, budget_of)

    def compile_chat(self, source: str) -> jinja2.Template:
        """The template, ready to render.

        Raises:
            Exception: whatever Jinja and Python make of a bad template; RecursionError and MemoryError among it.
        """
        if len(source) > LARGEST_SOURCE:
            raise BudgetExceededError(f"it is longer than {LARGEST_SOURCE} characters")
        tree = self.parse(source)
        if _weight([tree], count_only=True) > LARGEST_TREE:
            raise BudgetExceededError(f"it has more than {LARGEST_TREE} parts")
        tree = _Rewriter().visit(tree)
        code = self.compile(tree, filename=FILE_NAME)
        return jinja2.Template.from_code(self, code, self.make_globals(None))

    # --- attributes and calls -----------------------------------------------------------------------------------------

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, _DATA_TYPES):
            return attr in methods_of(obj)
        return isinstance(obj, LoopContext | Namespace | Cycler | Macro)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        sandboxed = super().wrap_str_format(value)
        return None if sandboxed is None else _Format(value.__self__, sandboxed, self._budget_of)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = __self.budget
        budget.charge(OPERATION)
        if isinstance(__obj, Macro | LoopContext | BlockReference):
            result = __context.call(__obj, *args, **kwargs)
            # The text is copied where it goes, perhaps without passing a guard there.
            budget.charge(2 * text_size(result) if isinstance(result, str) else 0)
            return result
        given = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
        # What is made while it is looked at has not been charged for; a list has.
        arguments = [list(arg) if isinstance(arg, Iterator) else arg for arg in args]
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | int | float | list | tuple | dict) and isinstance(
            __obj, types.BuiltinMethodType | types.MethodType
        ):
            cost = method_cost(budget, owner, __obj.__name__, tuple(arguments), given)
            if cost is None:
                raise SecurityError(f"templates may not call {type(owner).__name__}.{__obj.__name__}")
            budget.charge(cost)
            return __context.call(__obj, *arguments, **given)
        if not isinstance(__obj, jinja2.Undefined | Joiner | _Format) and not (
            __obj in __self._functions.values() or isinstance(owner, Cycler | LoopContext)
        ):
            raise SecurityError(f"templates may not call a {type(__obj).__name__}")
        size = budget.printed_size if __obj is _raise_exception else budget.size
        budget.charge(size(arguments) + size(given))
        return __context.call(__obj, *arguments, **given)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        if isinstance(left, str) and operator == "%":
            budget.charge(OPERATION + budget.size(right) + printf_cost(budget, left, right))
        elif isinstance(left, int) and isinstance(right, int):
            budget.charge(OPERATION + integer_operation(operator, left, right))
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            times, what = (left, right) if isinstance(left, int) else (right, left)
            budget.charge(OPERATION + self._joined_size(what) * max(times, 1))
        elif operator == "+":
            budget.charge(OPERATION + self._joined_size(left, right))
        else:
            budget.charge(OPERATION + budget.size(left) + budget.size(right))
        return super().call_binop(context, operator, left, right)

    def _joined_size(self, *parts: Any) -> int:
        # Text marked as safe escapes what it is joined to, with up to six characters for one.
        factor = 6 if any(isinstance(part, Markup) for part in parts) else 1
        return factor * sum(
            shallow_size(part) if isinstance(part, list | tuple) else self.budget.size(part) for part in parts
        )

    # --- guards -------------------------------------------------------------------------------------------------------

    def _guards(self) -> dict[Any, Any]:
        def charge(context: Context, cost: int) -> None:
            self.budget.charge(cost)

        def text(context: Context, value: Any) -> Any:
            # Twice: once where it is printed, once where the pieces are put together.
            self.budget.charge(2 * self.budget.printed_size(value))
            return value

        def operand(context: Context, value: Any, factor: int = 1) -> Any:
            self.budget.charge(factor * self.budget.size(value))
            return value

        def iterated(context: Context, value: Any, cost_per_item: int) -> Any:
            if isinstance(value, Sized):
                self.budget.charge(len(value) * cost_per_item)
            return value

        def cut(context: Context, value: Any, start: Any, stop: Any, step: Any) -> Any:
            part = slice(start, stop, step)
            if isinstance(value, str | list | tuple):
                length = len(range(*part.indices(len(value))))
                self.budget.charge(64 + length * (4 if isinstance(value, str) and not value.isascii() else 8))
            return value[part]

        def unpacked(context: Context, value: Any) -> Any:
            if not isinstance(value, list | tuple | dict) or len(value) > _MOST_ARGUMENTS:
                raise BudgetExceededError(f"it unpacks something else than a list of up to {_MOST_ARGUMENTS} arguments")
            return value

        return {
            "#charge": pass_context(charge),
            "#text": pass_context(text),
            "#operand": pass_context(operand),
            "#iterated": pass_context(iterated),
            "#cut": pass_context(cut),
            "#unpacked": pass_context(unpacked),
        }


# --- the syntax tree --------------------------------------------------------------------------------------------------

_PLAIN = (
    *(nodes.Template, nodes.If, nodes.FilterBlock, nodes.With, nodes.ExprStmt, nodes.Assign, nodes.AssignBlock),
    *(nodes.Scope, nodes.Continue, nodes.Break, nodes.Name, nodes.NSRef, nodes.Const, nodes.TemplateData, nodes.Tuple),
    *(nodes.List, nodes.Pair, nodes.Keyword, nodes.CondExpr, nodes.Getattr, nodes.Slice, nodes.Operand, nodes.Mul),
    *(nodes.Div, nodes.FloorDiv, nodes.Add, nodes.Sub, nodes.Mod, nodes.Pow, nodes.And, nodes.Or, nodes.Not, nodes.Neg),
    nodes.Pos,
)
# What these make takes more room than the few units a part of an expression is charged for.
_HEAVY = {nodes.List: 192, nodes.Tuple: 192, nodes.Dict: 480, nodes.Call: 480, nodes.Filter: 480, nodes.Macro: 2000}


def _weight(tree: Sequence[nodes.Node], count_only: bool = False) -> int:
    """Units that running these nodes once costs at most, apart from what guards charge; or how many nodes there are."""
    total = 0
    pending = list(tree)
    while pending:
        node = pending.pop()
        pending.extend(node.iter_child_nodes())
        total += 1 if count_only else _HEAVY.get(type(node), _NODE)
        text = node.data if isinstance(node, nodes.TemplateData) else getattr(node, "value", None)
        if isinstance(text, str) and not count_only:
            total += 2 * text_size(text)
    return total


def _guard(name: str, node: Any, *args: object) -> Any:
    # What is written in the template is charged for with the statement it stands in.
    if isinstance(node, nodes.TemplateData) or (isinstance(node, nodes.Const) and not _is_long(node.value)):
        return node
    given = [arg if isinstance(arg, nodes.Expr) else nodes.Const(arg) for arg in args]
    return nodes.Filter(node, name, given, [], None, None, lineno=node.lineno)


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value) > 100


class _Rewriter(NodeTransformer):
    """Puts a guard before every operation that Jinja would otherwise leave to Python alone."""

    def __init__(self) -> None:
        self._depth = 0

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if type(node) not in _PLAIN and not hasattr(self, f"visit_{type(node).__name__}"):
            raise jinja2.TemplateSyntaxError(f"chat templates may not use {type(node).__name__}", node.lineno)
        return super().generic_visit(node, *args, **kwargs)

    def _charged(self, node: Any) -> nodes.Node:
        """A node whose body is run again and again, or from elsewhere: each time it is charged for."""
        weight = _weight([node])
        self._depth += 1
        if self._depth > _DEEPEST_NESTING:  # which compiling would take long for
            raise BudgetExceededError(f"it nests loops and macros more than {_DEEPEST_NESTING} deep")
        self.generic_visit(node)
        self._depth -= 1
        charge = nodes.Filter(nodes.Const(weight), "#charge", [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(charge, lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        per_item = _NODE + (_weight([node.test]) if node.test else 0)
        charged = self._charged(node)
        node.iter = _guard("#iterated", node.iter, per_item)
        return charged

    visit_Macro = visit_CallBlock = visit_Block = _charged  # noqa: N815

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_guard("#text", child) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_guard("#text", child) for child in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        # Comparing with a literal takes no longer than the literal is long.
        with_literal = isinstance(node.expr, nodes.Const) or isinstance(node.ops[0].expr, nodes.Const)
        if with_literal and len(node.ops) == 1 and node.ops[0].op in ("eq", "ne"):
            return node
        left: nodes.Expr = node.expr
        node.expr = _guard("#operand", left)
        for operand in node.ops:
            steps = 1
            if operand.op in ("in", "notin"):
                literal = left.value if isinstance(left, nodes.Const) and isinstance(left.value, str) else None
                steps = 25 if literal is None else 1 + min(len(literal), 100) // 4
            left = operand.expr
            operand.expr = _guard("#operand", left, steps)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            part = node.arg
            bounds = [bound or nodes.Const(None) for bound in (part.start, part.stop, part.step)]
            return nodes.Filter(node.node, "#cut", bounds, [], None, None, lineno=node.lineno)
        node.arg = _guard("#operand", node.arg, _PER_KEY)
        return node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _guard("#operand", pair.key, _PER_KEY)
        return node

    def visit_Call(self, node: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.dyn_args = node.dyn_args and _guard("#unpacked", node.dyn_args)
        node.dyn_kwargs = node.dyn_kwargs and _guard("#unpacked", node.dyn_kwargs)
        return node  # type: ignore[no-any-return]

    visit_Filter = visit_Test = visit_Call  # noqa: N815
