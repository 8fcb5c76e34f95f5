"""Every reason that the code can give, read from the source: what is passed to the few things that take a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.docs.pages import REPOSITORY

OPERATOR = [*(REPOSITORY / "operator/quire_operator").rglob("*.py")]
ENGINE = [*(REPOSITORY / "engine/quire_engine").rglob("*.py")]

_TAKES_A_REASON = {
    "Fault": 0,
    "Refusal": 0,
    "Problem": 0,
    "Obstacle": 0,
    "Verdict": 2,
    "_not_ready": 0,
    "StartupError": 0,
    "CheckpointError": 0,
    "phase": 1,  # engine.py: what a ValueError in this part of the start is called
}
"""Callable, and the position of the reason among its arguments."""

_SPOKEN_BY_OTHERS = {"told[1]", "str(status['reason'])"}
"""The engine's, which is read from its own source, and the node's, which are Kubernetes'."""

_OFFLINE = "llm.py"
"""Raises in a script and in no pod."""

_FIRST_WORD = re.compile(r"([A-Z][a-z]+(?:[A-Z][a-z]+)+): ")
"""`Reason: what happened`, as the engine's last words begin."""


_DOWNLOADS = ("hub.py", "prefetch.py", "transfer.py")


class UnknownReasonError(AssertionError):
    """A reason is passed in a way that this module cannot follow: teach it, or pass the reason plainly."""


def operator_reasons() -> set[str]:
    """Reasons of conditions that the operator finds by itself."""
    return {reason for file in OPERATOR for reason in _of_calls(file)}


def engine_reasons() -> set[str]:
    """Reasons with which a pod's engine ends."""
    files = [file for file in ENGINE if file.name != _OFFLINE]
    return {reason for file in files for reason in (*_of_calls(file), *_of_last_words(file))}


def download_reasons() -> set[str]:
    """Those of them with which a download ends, in a pod or in the Job that fills the cache."""
    files = [file for file in ENGINE if file.parent.name == "loading" and file.name in _DOWNLOADS]
    return {reason for file in files for reason in _of_calls(file)} - {"AddressInUse"}


def _of_calls(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    for function in _functions(tree):
        for node in _own_nodes(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _TAKES_A_REASON:
                position = _TAKES_A_REASON[node.func.id]
                yield from _values(node.args[position], function, tree, f"{file.name}:{node.lineno}")


def _of_last_words(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    for function in _functions(tree):
        for node in _own_nodes(function):
            if not isinstance(node, ast.JoinedStr):
                continue
            match node.values:
                case [ast.Constant(value=str(text)), *_]:
                    yield from _FIRST_WORD.findall(text)[:1] if _FIRST_WORD.match(text) else ()
                case [ast.FormattedValue(value=ast.Name() | ast.Call(func=ast.Name()) as first), *_]:
                    if ast.unparse(first).split("(")[0].endswith("reason"):
                        yield from _values(first, function, tree, f"{file.name}:{node.lineno}")


def _values(node: ast.expr, function: ast.FunctionDef, module: ast.Module, where: str) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from _values(body, function, module, where)
            yield from _values(orelse, function, module, where)
        case ast.Attribute(attr="reason"):
            return  # handed on from what was made elsewhere
        case ast.Name(id=name) if name not in {argument.arg for argument in function.args.args}:
            found = list(_assigned(name, function, module, where))
            if not found:
                raise UnknownReasonError(f"{where}: cannot tell what {name} is")
            yield from found
        case ast.Call(func=ast.Name(id=called)) if any(f.name == called for f in _functions(module)):
            yield from _returned(called, None, module, where)
        case ast.Name():
            return  # an argument: its callers are looked at
        case _ if ast.unparse(node) in _SPOKEN_BY_OTHERS:
            return
        case _:
            raise UnknownReasonError(f"{where}: cannot tell what {ast.unparse(node)} is")


def _assigned(name: str, function: ast.FunctionDef, module: ast.Module, where: str) -> Iterator[str]:
    """What a variable of a function may hold: what is assigned to it, or the cases it is matched with."""
    for node in _own_nodes(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                yield from _values(value, function, module, where)
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Call(func=ast.Name(id=called))):
                positions = [
                    i for i, target in enumerate(targets) if isinstance(target, ast.Name) and target.id == name
                ]
                for position in positions:
                    yield from _returned(called, position, module, where)
            case ast.Match(subject=ast.Name(id=subject), cases=cases) if subject == name:
                for case in cases:
                    if not _assigns(case.body, name):  # else the value that it gets there counts
                        yield from _patterns(case.pattern)


def _returned(called: str, position: int | None, module: ast.Module, where: str) -> Iterator[str]:
    """What a function of the module returns, or at this position of the tuple that it returns."""
    for function in _functions(module):
        for node in _own_nodes(function) if function.name == called else ():
            match node:
                case ast.Return(value=ast.Tuple(elts=elements)) if position is not None:
                    yield from _values(elements[position], function, module, where)
                case ast.Return(value=ast.expr() as value) if position is None:
                    yield from _values(value, function, module, where)


def _patterns(pattern: ast.pattern) -> Iterator[str]:
    for node in ast.walk(pattern):
        if isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def _assigns(body: Iterable[ast.stmt], name: str) -> bool:
    targets = [t for stmt in body if isinstance(stmt, ast.Assign) for t in stmt.targets]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.AsyncFunctionDef):
            yield ast.FunctionDef(**{field: getattr(node, field) for field in ast.FunctionDef._fields})


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """All nodes of a function, without those of functions inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += ast.iter_child_nodes(node)
