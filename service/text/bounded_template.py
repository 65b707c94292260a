"""Jinja in which a template can take neither the machine's time nor its memory.

Jinja's sandbox keeps a template from Python's insides, but not from `'x' * 10**10`, from a macro that calls itself
twice, or from a list of lists of lists that are one and the same. Here a rendering has a budget of work: each pass
through a loop, call, filter, operation and output costs one, and what is read or made costs by its size. What makes
much of little by design (padding, wrapping, made-up text) and is of no use in a prompt is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from typing_extensions import override

MAX_WORK = 200_000  # less than a second
CHARS_PER_WORK = 1024
_BITS = 64

_NO_FILTERS = (
    "batch",
    "center",
    "filesizeformat",
    "format",
    "pprint",
    "random",
    "slice",
    "urlize",
    "wordwrap",
    "xmlattr",
)
_NO_METHODS = frozenset({"center", "expandtabs", "format_map", "ljust", "rjust", "translate", "zfill"})
# These hand on what they get, and look at no more of it than its length; others may write it out.
_SHALLOW_FILTERS = frozenset(
    {
        *("count", "d", "default", "dictsort", "first", "items", "last", "length", "list", "map", "max", "min"),
        *("reject", "rejectattr", "reverse", "select", "selectattr", "sort", "unique"),
    }
)
_MEASURED_FILTERS = frozenset({"indent", "round", "tojson"})
_MAX_MEASURE = 64
_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-+ #0]*(\d*\.)?(\*|\d{4})")
_WIDE_FORMAT = re.compile(r"\{[^{}]*:[^{}]*(\d{4}|\{)")


class Budget:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self._left = MAX_WORK

    def spend(self, num_chars: int = 0) -> None:
        self._left -= 1 + num_chars // CHARS_PER_WORK
        if self._left < 0:
            raise TemplateRuntimeError(f"it does more than {MAX_WORK} operations")

    def spend_on_text(self, value: object) -> None:
        """What writing out `value` costs, with all that is in it."""
        self.spend(_size(value))
        if isinstance(value, Mapping):
            value = [*value.keys(), *value.values()]
        if isinstance(value, list | tuple):
            for each in value:
                self.spend_on_text(each)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Render within `rendering()`; a template of it must be compiled from a tree that `bound` has seen."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, filters: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        self._budget: ContextVar[Budget] = ContextVar("budget")
        super().__init__(finalize=self._shown, **options)
        for name in _NO_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]
        known = {**self.filters, **filters}
        self.filters = {name: self._bounded(name, function) for name, function in known.items()}

    @contextmanager
    def rendering(self) -> Iterator[None]:
        token = self._budget.set(Budget())
        try:
            yield
        finally:
            self._budget.reset(token)

    def bound(self, tree: nodes.Template) -> nodes.Template:
        """`tree`, with what the environment cannot see by itself made visible to it."""
        bounded: nodes.Template = _Visible().visit(tree)
        return bounded

    def begin_pass(self, num_chars: int) -> None:
        """A pass through a loop, of whose text there is so much."""
        self._budget.get().spend(num_chars)

    def read(self, value: Any) -> Any:
        """Something is compared or cut."""
        self._budget.get().spend(_size(value))
        return value

    def concatenate(self, *parts: object) -> str:
        """The operator `~`."""
        self._budget.get().spend_on_text(parts)
        return "".join(map(str, parts))

    @override
    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = self._budget.get()
        if operator == "%" and isinstance(left, str):
            if _WIDE_PERCENT.search(left):
                raise SecurityError("a format with so wide a field is not allowed")
            budget.spend_on_text([left, right])
        else:
            budget.spend(_size_made(operator, left, right))
        return super().call_binop(context, operator, left, right)

    @override
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in Jinja
        owner, budget = getattr(__obj, "__self__", None), __self._budget.get()
        if isinstance(owner, str):
            args = tuple(list(each) if isinstance(each, Iterator) else each for each in args)
            budget.spend(_size(owner) + _size_joined(__obj.__name__, owner, args))
        elif owner is not __self:
            budget.spend(sum(_size(each) for each in (*args, *kwargs.values()) if isinstance(each, str)))
        return super().call(__context, __obj, *args, **kwargs)

    @override
    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return not (isinstance(obj, str) and attr in _NO_METHODS) and super().is_safe_attribute(obj, attr, value)

    @override
    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made = super().wrap_str_format(value)
        if made is None:
            return None
        if _WIDE_FORMAT.search(value.__self__):
            raise SecurityError("a format with so wide a field is not allowed")

        def bounded(*args: Any, **kwargs: Any) -> str:
            self._budget.get().spend_on_text([value.__self__, *args, *kwargs.values()])
            return made(*args, **kwargs)

        return bounded

    def _shown(self, value: Any) -> Any:
        self._budget.get().spend_on_text(value)
        return value

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that costs; those that want the context or the like get it before the value."""
        num_before = int(hasattr(function, "jinja_pass_arg"))

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            before, (value, *rest) = args[:num_before], args[num_before:]
            budget, options = self._budget.get(), [*rest, *kwargs.values()]
            if name in _SHALLOW_FILTERS:
                budget.spend(_size(value))
            else:
                value = list(value) if isinstance(value, Iterator) else value
                budget.spend_on_text(value)
            budget.spend(_size_joined(name, value, options))
            if name in _MEASURED_FILTERS and any(_measure(each) > _MAX_MEASURE for each in options):
                raise SecurityError(f"{name} by so much is not allowed")
            return function(*before, value, *rest, **kwargs)

        return bounded


class _Visible(NodeTransformer):
    """Turns what is no operator that an environment can intercept into calls: `a ~ b`, comparisons, slices."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - as Jinja names it
        self.generic_visit(node)
        return _called("concatenate", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _called("read", node.expr)
        for operand in node.ops:
            operand.expr = _called("read", operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.args = [_called("read", each) for each in node.args]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _called("read", node.node)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        num_chars = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_called("begin_pass", nodes.Const(num_chars))).set_lineno(node.lineno))
        return node


def _called(name: str, *arguments: nodes.Expr) -> nodes.Call:
    """A call of a method of the environment."""
    call = nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)
    call.set_lineno(arguments[0].lineno)
    return call


def _size(value: object) -> int:
    """Characters or elements."""
    return len(value) if isinstance(value, Sized) else 0


def _measure(option: object) -> int:
    return option if isinstance(option, int) else len(str(option))


def _size_made(operator: str, left: object, right: object) -> int:
    if isinstance(left, int) and isinstance(right, int):  # long multiplication takes the square of the length
        num_bits = left.bit_length() * max(1, right) if operator == "**" else left.bit_length() + right.bit_length()
        return num_bits**2 // _BITS
    for one, other in ((left, right), (right, left)):
        if isinstance(other, int):
            return _size(one) * max(0, other)
    return _size(left) + _size(right)


def _size_joined(name: str, value: object, arguments: Sequence[object]) -> int:
    """What grows with the product of two sizes."""
    if name == "replace" and len(arguments) > 1:
        return _size(value) // max(1, _size(arguments[0])) * _size(arguments[1])
    if name == "join" and arguments:  # a filter of a list with a separator, a method of a separator with a list
        return _size(value) * _size(arguments[0])
    return 0
