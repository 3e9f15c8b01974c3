"""Mutations: the small faults that are put into a module, one at a time.

In: the syntax tree of a module.
Out: where each mutation lies, a description of it, and the change of the tree itself.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

FLIPS: dict[type[ast.AST], type[Any]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Add: ast.Sub, ast.Sub: ast.Add,
}  # fmt: skip
TWINS = {"min": "max", "max": "min", "any": "all", "all": "any"}
ORDERED = ("sync", "write", "flush", "rename", "replace", "unlink", "truncate", "commit", "append",
           "close", "seek", "lock", "rmtree", "save", "link", "mkdir")  # fmt: skip
"""Parts of names of calls whose order may matter on a disk."""
FILE_MODES = (0o644, 0o600)
"""The only numbers that are not changed: the modes of new files."""

Site = tuple[int, int, str, Callable[[], object]]
"""First and last line, a description, and the change itself."""


class Mutation(NamedTuple):
    """One change of a tree, with a name that stays when lines above it move."""

    first_line: int
    last_line: int
    name: str
    act: Callable[[], object]


def mutations(tree: ast.AST) -> list[Mutation]:
    """Return every mutation of a tree: named by function and change, in the order of the walk."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    counts: Counter[str] = Counter()
    found = []
    for first, last, text, act in _sites(tree):
        around = [f for f in functions if f.lineno <= first <= (f.end_lineno or first)]
        name = f"{max(around, key=lambda f: f.lineno).name}: {text}"
        counts[name] += 1
        number = f" ({counts[name]})" if counts[name] > 1 else ""
        found.append(Mutation(first, last, name + number, act))
    return found


def _sites(tree: ast.AST) -> Iterator[Site]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in node.body:
                yield from _inside(inner)
            yield from _constant_returns(node)
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and not isinstance(node, ast.Module | ast.ClassDef):
                yield from _statements(body)


def _site(node: Any, what: str, act: Callable[[], object]) -> Site:
    text = ast.unparse(node).split("\n")[0][:100]
    return node.lineno, node.end_lineno, f"{what}: {text}", act


def _statements(body: list[ast.stmt]) -> Iterator[Site]:
    for i, one in enumerate(body):
        text = ast.unparse(one)
        is_call = isinstance(one, ast.Expr) and isinstance(one.value, ast.Call | ast.Await)
        is_state = isinstance(one, ast.AugAssign) or (
            isinstance(one, ast.Assign) and not isinstance(one.targets[0], ast.Name | ast.Tuple)
        )
        if (is_call and not text.startswith("log.")) or is_state:
            yield _site(one, "dropped", lambda i=i: body.__setitem__(i, ast.Pass()))
        if isinstance(one, ast.Continue | ast.Break):
            yield _site(one, "dropped", lambda i=i: body.__setitem__(i, ast.Pass()))
        if i + 1 < len(body) and _is_ordered(one) and _is_ordered(body[i + 1]):
            pair = [body[i + 1], one]
            yield _site(one, "behind the next", lambda i=i, p=pair: _set(body, i, p))


def _set(body: list[ast.stmt], at: int, pair: list[ast.stmt]) -> None:
    body[at : at + 2] = pair


def _is_ordered(node: ast.stmt) -> bool:
    calls = (ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call))
    simple = isinstance(node, ast.Expr | ast.Assign | ast.AugAssign | ast.With | ast.If)
    return simple and any(part in call for call in calls for part in ORDERED)


def _inside(root: ast.stmt) -> Iterator[Site]:
    for node in ast.walk(root):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            yield _site(node.test, "negated", lambda n=node: setattr(n, "test", _no(n.test)))
        for i, test in enumerate(getattr(node, "ifs", ())):
            yield _site(test, "negated", lambda n=node, i=i: n.ifs.__setitem__(i, _no(n.ifs[i])))
        if isinstance(node, ast.BoolOp):
            for i, term in enumerate(node.values):
                gone = ast.Constant(isinstance(node.op, ast.And))
                yield _site(
                    term, "left out", lambda n=node, i=i, g=gone: n.values.__setitem__(i, g)
                )
        if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPS:
            yield _site(node, "flipped", lambda n=node: _flip(n.ops, 0))
        if isinstance(node, ast.BinOp) and type(node.op) in FLIPS:
            yield _site(node, "other sign", lambda n=node: setattr(n, "op", FLIPS[type(n.op)]()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TWINS:
            yield _site(node, "twin", lambda n=node: setattr(n.func, "id", TWINS[n.func.id]))
        if isinstance(node, ast.BinOp | ast.Compare | ast.Call | ast.Slice | ast.Return):
            for one in ast.iter_child_nodes(node):
                is_number = isinstance(one, ast.Constant) and type(one.value) is int
                if is_number and one.value not in FILE_MODES:
                    yield _site(
                        node, f"{one.value} + 1", lambda c=one: setattr(c, "value", c.value + 1)
                    )


def _no(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def _flip(ops: list[ast.cmpop], at: int) -> None:
    ops[at] = FLIPS[type(ops[at])]()  # type: ignore[assignment]


def _constant_returns(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Site]:
    if function.returns is None or ast.unparse(function.returns) != "bool":
        return
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and not isinstance(node.value, ast.Constant):
            for value in (True, False):
                new = ast.Constant(value)
                yield _site(node, f"{value}", lambda n=node, c=new: setattr(n, "value", c))
