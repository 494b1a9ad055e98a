"""A part's class read from its source: nothing is imported, so torch is not either."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from personalign import contracts
from personalign.contracts import UserError

LITERALS: dict[str, Any] = {"needs": (), "provides": (), "paper": "", "node": "", "strength": "", "candidates": ""}
ARGUMENTS = ("strength", "candidates")  # literals that name an argument
ALIASES = {n: v for n, v in vars(contracts).items() if get_origin(v) in (Annotated, Literal)}
NAMESPACE = {"__builtins__": {}, **vars(builtins), "Literal": Literal, **ALIASES}

Found = tuple[str, ast.ClassDef]


@dataclass(frozen=True, kw_only=True)
class ClassView:
    """What a class says of itself: first line of its doc, keyword arguments with types, and its literals."""

    target: str
    cls_name: str
    doc: str
    params: Mapping[str, Any]
    needs: tuple[str, ...]
    provides: tuple[str, ...]
    paper: str
    node: str
    strength: str
    candidates: str


def view(target: str) -> ClassView:
    """The light view of `package.module.Class`; raises UserError where it cannot be read."""
    module, _, name = target.rpartition(".")
    found = _find(module, name) if module else None
    if found is None:
        raise UserError(f"_target_ {target}: no such class in the source of {module or 'nothing'}")
    file = str(_file(module))
    return _view(target, file, Path(file).stat().st_mtime_ns)


@cache
def _view(target: str, file: str, mtime: int) -> ClassView:
    """`file` and `mtime` are there for the cache alone: an edited class is read anew."""
    module, _, name = target.rpartition(".")
    found = _find(module, name)
    assert found is not None
    line = list(_lineage(found))
    doc = (ast.get_docstring(found[1]) or "").partition("\n")[0]
    literals = {key: _literal(target, key, line) for key in LITERALS}
    params = _params(target, line)
    for key in ARGUMENTS:
        if literals[key] and literals[key] not in params:
            raise UserError(
                f"{target}: {key} must name one of its arguments, {', '.join(params) or 'of which it has none'}"
            )
    return ClassView(target=target, cls_name=name, doc=doc, params=params, **literals)


def _file(module: str) -> Path | None:
    """The source of a module; only the top package is looked up, so that no package is imported."""
    top, *rest = module.split(".")
    if top in sys.stdlib_module_names:
        return None  # no part comes from there
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return None
    if spec is None:
        return None
    if not rest and spec.origin and spec.has_location:
        return Path(spec.origin)
    for root in spec.submodule_search_locations or ():
        base = Path(root, *rest)
        for path in (base.parent / f"{base.name}.py", base / "__init__.py"):
            if path.is_file():
                return path
    return None


@cache
def _parse(path: Path, mtime: int) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from None


def _find(module: str, name: str) -> Found | None:
    """The class `name` of `module`, followed through `from x import name`."""
    path = _file(module)
    if path is None:
        return None
    for node in _parse(path, path.stat().st_mtime_ns).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(_absolute(module, path, node), alias.name)
    return None


def _absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    up = node.level - 1 if path.name == "__init__.py" else node.level
    parents = module.split(".")[: len(module.split(".")) - up]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _lineage(found: Found) -> Iterator[Found]:
    """The class, then its bases depth first, as far as their source can be read."""
    yield found
    for base in found[1].bases:
        if isinstance(base, ast.Name) and (parent := _find(found[0], base.id)):
            yield from _lineage(parent)


def _literal(target: str, key: str, line: list[Found]) -> Any:
    for _, cls in line:
        for node in cls.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if value is None or not any(isinstance(t, ast.Name) and t.id == key for t in targets):
                continue
            try:
                read = ast.literal_eval(value)
            except ValueError:
                read = None
            if not _fits(read, LITERALS[key]):
                raise UserError(f"{target}: {key} must be a literal {_kind(LITERALS[key])}")
            return read
    return LITERALS[key]


def _fits(read: Any, empty: Any) -> bool:
    return isinstance(read, type(empty)) and all(isinstance(item, str) for item in read)


def _kind(empty: Any) -> str:
    return "string" if isinstance(empty, str) else "tuple of strings"


def _params(target: str, line: list[Found]) -> dict[str, Any]:
    """Arguments of the nearest `__init__` that may be given by name, with their types; behind them what a TypedDict
    says of the rest, `**rest: Unpack[Keys]`."""
    for module, cls in line:
        for node in cls.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                own = {a.arg: a.annotation for a in (*node.args.args[1:], *node.args.kwonlyargs)}
                rest = _unpacked(module, node.args.kwarg)
                return {name: _annotation(target, name, found) for name, found in {**own, **rest}.items()}
    return {}


def _unpacked(module: str, rest: ast.arg | None) -> dict[str, ast.expr]:
    """The keys that `**rest: Unpack[Keys]` stands for, with their annotations, those of the bases of `Keys` last."""
    match rest and rest.annotation:
        case ast.Subscript(value=ast.Name(id="Unpack"), slice=ast.Name(id=name)) if keys := _find(module, name):
            fields = [node for _, cls in _lineage(keys) for node in cls.body if isinstance(node, ast.AnnAssign)]
            return {node.target.id: node.annotation for node in fields if isinstance(node.target, ast.Name)}
    return {}


def _annotation(target: str, name: str, node: ast.expr | None) -> Any:
    if node is None:
        raise UserError(f"{target}: argument {name} has no annotation")
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    try:
        return eval(compile(ast.Expression(node), target, "eval"), dict(NAMESPACE))
    except Exception as error:
        text = f"{target}: the annotation of {name}, {ast.unparse(node)}, cannot be checked ({error})"
        raise UserError(f"{text}; use builtins, Literal and the names of personalign.contracts") from None
