"""Reads Python source as a tree and finds what breaks the order of the package's layers or its limits of size.

It only reads source text; which files are read, and what a finding means for a build, is for the tests to say.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "airflow_provider_flows"
MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_NESTING = 3

# A module may import from its own layer and from those before it. What is in none of them is on top.
LAYERS = (
    ("flow",),
    ("transport", "connection", "kills", "memory", "metrics"),
    ("connected",),
    ("sources", "naming", "abreast", "writing", "places"),
    ("delivery",),
    ("inputs", "filing", "outputs", "graphs"),
    ("hooks", "definitions", "watch", "lookups", "subscriber", "gated", "bulletin"),
    ("triggers", "finished", "asset_memory"),
)
_TOP = len(LAYERS)
_ALLOWED_IN_CORE = sys.stdlib_module_names | {"pendulum", "pybase64"}
_SERVICES = f"{PACKAGE}.flow.services."
_SLEEP_ALLOWED_IN = ("transport", "watch", "emulator")
_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name, and where."""

    target: str
    line: int
    is_eager: bool = True


def read_modules(root: Path) -> dict[str, str]:
    """Read the source of every module below a folder, by the module's full name."""
    return {_module_name(path, root): path.read_text() for path in sorted(root.rglob("*.py"))}


def layering_violations(modules: Mapping[str, str]) -> list[str]:
    """Find imports that run back up, libraries where they do not belong, sleeps, and circles."""
    violations: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, source in modules.items():
        tree = ast.parse(source)
        imports = list(_imports(tree, module, modules))
        violations += [
            f"{module}:{found.line}: imports {found.target}: {reason}"
            for found in imports
            if (reason := _forbidden_reason(module, found.target))
        ]
        if _subpackage(module) not in _SLEEP_ALLOWED_IN:
            violations += [
                f"{module}:{line}: time.sleep belongs to transport, watch and emulator"
                for line in _sleep_lines(tree)
            ]
        graph[module] = {found.target for found in imports if found.is_eager} & modules.keys()
    return violations + [
        f"modules import each other in a circle: {' -> '.join(circle)}" for circle in _import_cycles(graph)
    ]


def size_violations(modules: Mapping[str, str]) -> list[str]:
    """Find modules and functions that are too long, too deep, or do not say what they are for."""
    violations: list[str] = []
    for module, source in modules.items():
        tree = ast.parse(source)
        if (lines := len(source.splitlines())) > MAX_MODULE_LINES:
            violations.append(f"{module}: {lines} lines; at most {MAX_MODULE_LINES}")
        if len(re.findall(r"[.!?](?:\s|$)", ast.get_docstring(tree) or "")) < 2:
            violations.append(
                f"{module}: the docstring needs two sentences: what it is responsible for, what it is not"
            )
        for function in (node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)):
            where = f"{module}:{function.lineno}: {function.name}"
            if (lines := _function_lines(function)) > MAX_FUNCTION_LINES:
                violations.append(
                    f"{where} has {lines} lines without its docstring; at most {MAX_FUNCTION_LINES}"
                )
            if (depth := _depth(function.body)) > MAX_NESTING:
                violations.append(f"{where} nests {depth} deep; at most {MAX_NESTING}")
    return violations


def _module_name(path: Path, root: Path) -> str:
    parts = (root.name, *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _subpackage(module: str) -> str:
    """Name the part of the package that a module belongs to: `flow` for `airflow_provider_flows.core.run`."""
    return module.split(".")[1] if "." in module else ""


def _layer(part: str) -> int:
    return next((number for number, parts in enumerate(LAYERS) if part in parts), _TOP)


def _forbidden_reason(module: str, target: str) -> str | None:
    """Say why a module must not import another; None if it may."""
    here, there = _subpackage(module), _subpackage(target)
    reason = None
    if target.partition(".")[0] != PACKAGE:
        reason = _forbidden_library_reason(here, target.partition(".")[0])
    elif "emulator" in {here, there}:
        starts = (here, target) == ("cli", f"{PACKAGE}.emulator.__main__")  # as anybody does
        reason = (
            None
            if here == there or starts
            else "the emulator and the rest of the package do not know each other"
        )
    elif there and not here:
        reason = None if there == "flow" else "the package itself stays cheap to import: it knows flow only"
    elif there and _layer(here) < _layer(there):
        reason = f"imports run downward only, and {there} is above {here}"
    elif here == "flow" and target.startswith(_SERVICES) and not module.startswith(_SERVICES):
        reason = "nothing in flow/ knows a service, but the services"
    return reason


def _forbidden_library_reason(part: str, library: str) -> str | None:
    if part == "flow" and library not in _ALLOWED_IN_CORE:
        return "flow/ knows the standard library, pendulum and pybase64 only"
    if part in {"transport", "emulator"} and library == "airflow":
        return f"{part}/ knows nothing of Airflow"
    return None


def _imports(tree: ast.Module, module: str, modules: Mapping[str, str]) -> Iterator[Import]:
    later = {node for block in ast.walk(tree) if _is_deferred(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(name.name, node.lineno, node not in later)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, modules)
            for name in node.names:
                full_name = f"{base}.{name.name}"
                yield Import(full_name if full_name in modules else base, node.lineno, node not in later)


def _is_deferred(block: ast.AST) -> bool:
    """Tell whether what stands in a block is not run when the module is loaded."""
    for_types = isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
    return for_types or isinstance(block, _FUNCTIONS)


def _absolute(node: ast.ImportFrom, module: str, modules: Mapping[str, str]) -> str:
    if not node.level:
        return node.module or ""
    is_package = any(other.startswith(f"{module}.") for other in modules)
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def _sleep_lines(tree: ast.Module) -> list[int]:
    lines = []
    for node in ast.walk(tree):
        called = (
            isinstance(node, ast.Attribute) and node.attr == "sleep" and ast.unparse(node.value) == "time"
        )
        imported = (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and any(n.name == "sleep" for n in node.names)
        )
        if called or imported:
            lines.append(node.lineno)
    return lines


def _import_cycles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> Iterator[list[str]]:
        if module in path:
            yield [*path[path.index(module) :], module]
        elif module not in done:
            for other in sorted(graph.get(module, ())):
                # A package's own __init__ and its modules may name each other: Python imports the one first anyway.
                if not module.startswith(f"{other}."):
                    yield from visit(other, [*path, module])
            done.add(module)

    for module in graph:
        yield from visit(module, [])


def _function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        first = function.body[0]
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def _depth(body: Iterable[ast.stmt]) -> int:
    deepest = 0
    for statement in body:
        if not isinstance(statement, _BLOCKS):
            continue
        inner = 1 + max(map(_depth, _bodies(statement)), default=0)
        orelse = getattr(statement, "orelse", [])
        # An elif is an `if` alone in an `else`: it stands no deeper than the `if` that it belongs to.
        is_elif = isinstance(statement, ast.If) and len(orelse) == 1 and isinstance(orelse[0], ast.If)
        deepest = max(deepest, inner, _depth(orelse) if is_elif else 1 + _depth(orelse))
    return deepest


def _bodies(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    yield getattr(statement, "body", [])
    yield getattr(statement, "finalbody", [])
    for part in (*getattr(statement, "handlers", []), *getattr(statement, "cases", [])):
        yield part.body
