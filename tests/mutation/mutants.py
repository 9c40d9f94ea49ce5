"""Small mistakes that can be made in a source: each changes one operator, constant or branch.

What only people read (docstrings, messages, annotations) is left alone, and so are assertions,
which say what cannot happen.
"""

import ast
import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_CODE_WORD = re.compile(r"[\w./:-]+")
"""Text that a program reads: a name, a key, a reason."""


@dataclass(frozen=True)
class Mutant:
    """A source with a mistake."""

    line: int
    change: str
    """What was, and what is."""
    source: str


def mutants(source: str) -> list[Mutant]:
    """Return every mutant of `source`, in its order."""
    tree = ast.parse(source)
    found = []
    for path, node in _places(tree):
        for kind, change in _changes(node):
            mutated = copy.deepcopy(tree)
            old, new = _put(mutated, path, change)
            reported = f"{kind}: {_short(old)} -> {_short(new)}"
            text = ast.unparse(ast.fix_missing_locations(mutated))
            found.append(Mutant(getattr(node, "lineno", 0), reported, text))
    return found


Path = tuple[tuple[str, int | None], ...]
"""Field and index from the root to a node."""
Change = Callable[[ast.AST], ast.AST]


def _places(node: ast.AST, path: Path = ()) -> Iterator[tuple[Path, ast.AST]]:
    yield path, node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if isinstance(child, ast.AST) and not _is_for_people(child):
                step = (name, index if isinstance(value, list) else None)
                yield from _places(child, (*path, step))


def _is_for_people(node: ast.AST) -> bool:
    """Return whether nothing of `node` can be wrong for a program."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
        return True
    is_constant = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return is_constant or (
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__slots__")
    )


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """Yield what can be done to `node`; each is applied to a copy of it."""
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            yield "compare", _setting("ops", index, _COMPARED[type(operator)]())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _COMPUTED:
        yield "compute", _setting("op", None, _COMPUTED[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "combine", _setting("op", None, other)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "negate", lambda copied: copied.operand  # type: ignore[attr-defined]
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node)
    elif isinstance(node, ast.If | ast.IfExp | ast.While) and not _is_negated(node.test):
        negated = ast.UnaryOp(ast.Not(), node.test)
        yield "branch", _setting("test", None, negated)
    elif isinstance(node, ast.comprehension):
        for index, condition in enumerate(node.ifs):
            yield "filter", _setting("ifs", index, ast.UnaryOp(ast.Not(), condition))
    elif _is_statement(node):
        yield "drop", lambda _: ast.Pass()
    elif isinstance(node, ast.Return) and node.value and ast.unparse(node.value) != "None":
        yield "return", _setting("value", None, ast.Constant(None))
    elif isinstance(node, ast.Break | ast.Continue):
        other_way = ast.Continue() if isinstance(node, ast.Break) else ast.Break()
        yield "jump", lambda _: other_way


def _other_constants(node: ast.Constant) -> Iterator[tuple[str, Change]]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", lambda _: ast.Constant(not value)
    elif isinstance(value, int | float):
        yield "constant", lambda _: ast.Constant(value + 1)
    elif isinstance(value, str) and _CODE_WORD.fullmatch(value):
        yield "constant", lambda _: ast.Constant(value + "x")


def _is_statement(node: ast.AST) -> bool:
    """Return whether it does something and gives nothing."""
    if isinstance(node, ast.Raise):
        return node.exc is not None
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)


def _is_negated(test: ast.expr) -> bool:
    """Return whether another change of `test` is the very same mistake."""
    is_not = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    exact = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)
    is_exact = isinstance(test, ast.Compare) and isinstance(test.ops[0], exact)
    return is_not or is_exact


def _setting(name: str, index: int | None, value: object) -> Change:
    def change(node: ast.AST) -> ast.AST:
        if index is None:
            setattr(node, name, value)
        else:
            getattr(node, name)[index] = value
        return node

    return change


def _put(tree: ast.AST, path: Path, change: Change) -> tuple[str, str]:
    """Change the node at `path` of `tree`, and return how it read before and after."""
    holder, node = tree, tree
    for name, index in path:
        holder = node
        value = getattr(node, name)
        node = value if index is None else value[index]
    old = ast.unparse(node)
    new = change(node)
    if path:
        _setting(*path[-1], new)(holder)
    return old, ast.unparse(ast.fix_missing_locations(new))


def _short(text: str) -> str:
    return " ".join(text.split())[:70]
