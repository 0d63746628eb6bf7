"""The sources of a schedule, written so that mypyc makes classes of C of them: for `compiled`.

Nothing that is decided changes. What mypyc cannot do, or does slowly, is written out:

* A dataclass becomes a class with the methods that ``dataclass`` would give it, and ``replace`` becomes a call of its
  ``__init__``: mypyc leaves both to the interpreter.
* Compiled functions call each other directly, so what `quick` puts in their place meanwhile is put there for good.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

FUTURE = "from __future__ import annotations\n"
#: Else ``__new__`` of mypyc's classes calls ``__init__``, and they cannot be unpickled.
PLAIN_NEW = "mypyc_attr(allow_interpreted_subclasses=True)"
#: For those calls of ``replace`` whose names of fields fit more than one class; they are few.
REPLACE = """
def replace(value: Any, /, **changes: Any) -> Any:
    return type(value)(**({name: getattr(value, name) for name in type(value).__mypyc_attrs__} | changes))
"""
#: All of `quick` is in place already.
QUICK = """
import contextlib
from collections.abc import Iterator

@contextlib.contextmanager
def quick() -> Iterator[None]:
    yield
"""
#: Of `quick`, for `links` itself.
REMEMBERED = ("MOST", "_heard", "carried")


def rewrite(directory: Path, paths: Iterable[Path]) -> None:
    """Rewrite the modules *paths* in *directory*."""
    trees = {path: ast.parse((directory / path).read_text()) for path in paths}
    quick = [line for path, tree in trees.items() if path.stem == "quick" for line in tree.body]
    classes = [one for tree in trees.values() for one in tree.body if isinstance(one, ast.ClassDef)]
    own = {one.name for one in classes}
    copies = _Copies({one.name: [_name(field) for field in _fields(one)] for one in classes if _is_dataclass(one)})
    for path, tree in trees.items():
        text = QUICK if path.stem == "quick" else _rewritten(path.stem, tree, copies, own, quick)
        (directory / path).write_text(FUTURE + text)


def _rewritten(name: str, tree: ast.Module, copies: _Copies, own: set[str], quick: list[ast.stmt]) -> str:
    copies.needed, copies.ambiguous = {}, False
    if name == "conditions":  # they are names for people
        _function(tree, "conditions").body = ast.parse("return ()").body
    elif name == "links":
        _function(tree, "carried").name = "_carried"
        tree.body += [one for one in quick if _binds(one) in REMEMBERED]
        for node in ast.walk(_function(tree, "carried")):
            if isinstance(node, ast.Name) and node.id == "copy":
                node.id = copies.function("Packet", ["report"])
    copies.visit(tree)
    for one in tree.body:
        if isinstance(one, ast.ClassDef):
            if _is_dataclass(one):
                _write_out(one)
            # Enums and exceptions are not compiled to classes of C.
            if {ast.unparse(base) for base in one.bases} <= own:
                one.decorator_list.append(ast.parse(PLAIN_NEW, mode="eval").body)
    head = ["from mypy_extensions import mypyc_attr", "from typing import Any, Optional"]
    # Not at the top, where a module that imports this one would not be there yet.
    tail = [*copies.needed.values()]
    if copies.ambiguous:
        tail.append(REPLACE)
    text = ast.unparse(tree).replace(FUTURE, "", 1).replace("@cached_property", "@property")
    return "\n".join([*head, text, *tail]) + "\n"


class _Copies(ast.NodeTransformer):
    """Each ``replace(value, field=...)`` becomes a call of a function for that class and these fields."""

    def __init__(self, fields: dict[str, list[str]]) -> None:
        self.fields = fields  # of each class
        self.needed: dict[str, str] = {}  # the functions of the module, by name
        self.ambiguous = False

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        if node.module == "dataclasses":
            node.names = [one for one in node.names if one.name not in ("dataclass", "replace", "field")]
        return node if node.names else None

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id == "replace"):
            return node
        changed = [str(one.arg) for one in node.keywords]
        kinds = [kind for kind, names in self.fields.items() if {*changed} <= {*names}]
        if len(kinds) != 1:
            self.ambiguous = True
            return node
        node.func.id = self.function(kinds[0], changed)
        return node

    def function(self, kind: str, changed: list[str]) -> str:
        """The name of the function that makes a copy of a *kind* with other values of *changed*."""
        name = "_".join(["", kind, *changed])
        arguments = ", ".join(f"{one}: Any" for one in changed)
        values = ", ".join(one if one in changed else f"value.{one}" for one in self.fields[kind])
        self.needed[name] = f"def {name}(value: {kind}, {arguments}) -> {kind}:\n    return {kind}({values})\n"
        return name


def _write_out(one: ast.ClassDef) -> None:
    """Give the dataclass the methods that it has by its decorator."""
    fields = _fields(one)
    names = [_name(field) for field in fields]
    arguments, made = ["self"], []
    for name, field in zip(names, fields, strict=True):
        kind, default, value = ast.unparse(field.annotation), field.value, name
        if isinstance(default, ast.Call) and ast.unparse(default.func) == "field":
            kind, value = (
                f"Optional[{kind}]",
                f"({ast.unparse(default.keywords[0].value)})() if {name} is None else {name}",
            )
            default = ast.Constant(None)
        arguments.append(f"{name}: {kind}" + (f" = {ast.unparse(default)}" if default is not None else ""))
        made.append(f"        self.{name} = {value}")
        field.value = None
    equal = " and ".join(f"self.{name} == other.{name}" for name in names)
    told = ", ".join(f"{name}={{self.{name}!r}}" for name in names)
    lines = [
        "class Methods:",
        f"    def __init__({', '.join(arguments)}) -> None:",
        *made,
        "    def __eq__(self, other: object) -> bool:",
        f"        return self is other or (isinstance(other, {one.name}) and {equal})",
        "    def __repr__(self) -> str:",
        f"        return f{f'{one.name}({told})'!r}",
    ]
    if any(isinstance(decorator, ast.Call) for decorator in one.decorator_list):  # a frozen one
        lines += [
            "    def __hash__(self) -> int:",
            f"        return hash(({', '.join(f'self.{name}' for name in names)},))",
        ]
    one.decorator_list = []
    methods = ast.parse("\n".join(lines)).body[0]
    assert isinstance(methods, ast.ClassDef)
    one.body += methods.body


def _is_dataclass(one: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in one.decorator_list)


def _fields(one: ast.ClassDef) -> list[ast.AnnAssign]:
    return [line for line in one.body if isinstance(line, ast.AnnAssign)]


def _name(field: ast.AnnAssign) -> str:
    return ast.unparse(field.target)


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    return next(one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == name)


def _binds(line: ast.stmt) -> str:
    """The name that a *line* of a module gives to something; empty for other lines."""
    if isinstance(line, ast.FunctionDef):
        return line.name
    target = (
        line.targets[0] if isinstance(line, ast.Assign) else line.target if isinstance(line, ast.AnnAssign) else None
    )
    return target.id if isinstance(target, ast.Name) else ""
