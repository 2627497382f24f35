"""Check the package against its tree: which module may import which, the libraries of each folder, the sizes.

Only source text is read, so imports for types and imports inside functions count as well.
`python -m tests.support.layering` prints a tree that the imports of the package allow.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "airflow_provider_flows"
MAX_MODULE_LINES = 500
MAX_LINE_LENGTH = 110  # of a printed tree
MAX_MODULES = 144  # in the package, without `__init__`
MAX_TOP_LEVEL_MODULES = 14  # files at the top of the package

# The reading order of the package, which is its import order: a module imports only from modules before it.
# A line is a folder (`.` is the package itself) and its modules.
TREE = """
core __init__ exceptions graph limits redaction safe_text definition single_flight template_problems
core timestamps flow_run
core/payload __init__ data_uri sink integrity picture_size
core http responses gltf retry validation
core/payload json_stream decoders download
core/polling __init__ bulk finished_runs schedule wait
core service account_limits start_or_resume check_retry batch reuse
. __init__
services __init__ promptchainer
services/generio __init__ responses api
transport __init__ framing network url_guard settings deadline response_reader asynchronous
transport blocking rate_limiter
. compat connection metrics provider_info retry_policy exceptions base_hook
storage __init__ parallel paths atomic_file file_source graph_files inputs item_files batch_items
checks definitions __init__ mesh requirements
storage batch_manifest output_options
checks files
storage output_download outputs reuse_index quota_marker
hooks preflight flows_hook __init__
worker __init__ kill_check lineage run_tracking saved_run task_state finish task_try start template_check
worker check_retry
triggerer __init__ per_loop shared_poller asset_watchers kill_check start_trigger
batch __init__ options records results item_run item_reader program batch_try task trigger operator
. triggers links sensors
drawing picture __init__
plugin viewer cache texts present html task_data airflow_internals abort_queue listener run_view
plugin run_origins connection_view batches output_files output_routes sources routes
emulator colours graph models scripting switches generio_templates state generio_rules generio middleware
emulator promptchainer server emulator __init__ __main__ pytest_plugin
cli __init__ arguments values parser terminal command flow_runs reuse run batch
. run_operators operators decorators
plugin __init__
"""

_PURE = ("core", "services")  # no I/O, no Airflow, no HTTP library
_PURE_LIBRARIES = sys.stdlib_module_names | {"pendulum", "pybase64"}
_WITHOUT_AIRFLOW = ("transport", "emulator", "drawing")
_HTTP_LIBRARIES = {"requests", "aiohttp", "httpx", "urllib3"}
COMPAT = f"{PACKAGE}.compat"  # the module that knows what differs between versions of Airflow
_FEATURE_CHECKS = {"hasattr", "signature", "inspect.signature"}
_AIRFLOW_DISTRIBUTIONS = {"apache-airflow", "apache-airflow-core", "apache-airflow-task-sdk"}
_MAY_SLEEP = ("transport", "triggerer", "emulator")
_ALLOWED = (
    ("base_hook", "requests"),  # only for types: `get_conn` returns a session
    ("cli", f"{PACKAGE}.emulator.__main__"),  # `airflow flows emulator` runs the emulator's own command
)
# In a printed tree, folders and modules at the top of the package come in this order as far as imports allow.
_PRINT_ORDER = (
    "core", "__init__", "services", "transport", "compat", "connection", "metrics", "provider_info",
    "retry_policy", "exceptions", "base_hook", "storage", "checks", "hooks", "worker", "triggerer",
    "batch", "triggers", "links", "sensors", "operators", "decorators", "drawing", "plugin", "emulator",
    "cli",
)  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name, and the line of the import."""

    target: str
    line: int


def parse_tree(tree: str = TREE) -> list[str]:
    """Return the full names of the modules in a tree, in their order; `__init__` is the folder itself."""
    names = []
    for line in tree.strip().splitlines():
        folder, *modules = line.split()
        parts = [PACKAGE, *(part for part in folder.strip("/.").split("/") if part)]
        names += [".".join(parts if module == "__init__" else [*parts, module]) for module in modules]
    return names


def read_modules(root: Path) -> dict[str, str]:
    """Return the source of every module below a folder, by the module's full name."""
    return {_module_name(path, root): path.read_text() for path in sorted(root.rglob("*.py"))}


def find_layering_breaches(modules: Mapping[str, str], tree: list[str]) -> list[str]:
    """Return upward imports, libraries and sleeps in the wrong folder, and differences from the tree."""
    breaches = [f"{module} is in the tree twice" for module in set(tree) if tree.count(module) > 1]
    breaches += [f"{module} is not in the tree" for module in modules if module not in tree]
    breaches += [f"{module} is in the tree, but does not exist" for module in tree if module not in modules]
    positions = {module: position for position, module in enumerate(tree)}
    for module, source in modules.items():
        parsed = ast.parse(source)
        breaches += [
            f"{module}:{found.line}: imports {found.target}: {reason}"
            for found in _imports(parsed, module, modules)
            if (reason := _forbidden(module, found.target, positions))
        ]
        if _folder(module) not in _MAY_SLEEP:
            breaches += [
                f"{module}:{line}: time.sleep belongs to {', '.join(_MAY_SLEEP)}" for line in _sleeps(parsed)
            ]
    return breaches


def find_version_branches(modules: Mapping[str, str]) -> list[str]:
    """Return what asks which Airflow is installed, outside the one module that may (`COMPAT`).

    That is an import of Airflow's whose failure is handled, a version of Airflow, and a check for attributes
    or parameters of something of Airflow's.
    """
    return [
        f"{module}:{line}: {what} belongs to {COMPAT}"
        for module, source in modules.items()
        if module != COMPAT
        for line, what in sorted(_version_branches(ast.parse(source)))
    ]


def _version_branches(parsed: ast.Module) -> Iterator[tuple[int, str]]:
    nodes = list(ast.walk(parsed))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        (alias.asname or alias.name).partition(".")[0]: alias.name
        for node in imports
        if _is_of_airflow(node)
        for alias in node.names
    }
    for node in nodes:
        if isinstance(node, ast.Try) and any(map(_handles_import_error, node.handlers)):
            handled: list[ast.stmt] = node.body
        elif isinstance(node, ast.With) and "ImportError" in ast.unparse(node.items[0]):
            handled = node.body
        else:
            handled = []
        yield from (
            (each.lineno, "an import of Airflow's that may fail")
            for statement in handled
            for each in ast.walk(statement)
            if isinstance(each, ast.Import | ast.ImportFrom) and _is_of_airflow(each)
        )
        if isinstance(node, ast.Call) and ast.unparse(node.func) in _FEATURE_CHECKS and node.args:
            root = ast.unparse(node.args[0]).partition(".")[0]
            if root in names:
                yield node.lineno, f"a check of {ast.unparse(node.args[0])}"
        if isinstance(node, ast.Constant) and node.value in _AIRFLOW_DISTRIBUTIONS:
            yield node.lineno, "a version of Airflow"
    yield from ((node.lineno, "a version of Airflow") for node in imports if _imports_version(node))


def _is_of_airflow(node: ast.Import | ast.ImportFrom) -> bool:
    if isinstance(node, ast.ImportFrom):
        return not node.level and str(node.module).partition(".")[0] == "airflow"
    return any(alias.name.partition(".")[0] == "airflow" for alias in node.names)


def _imports_version(node: ast.Import | ast.ImportFrom) -> bool:
    names = [alias.name for alias in node.names]
    return _is_of_airflow(node) and any(
        "version" in name.lower() or name.startswith("AIRFLOW_V_")
        for name in (*names, getattr(node, "module", None) or "")
    )


def _handles_import_error(handler: ast.ExceptHandler) -> bool:
    caught = "" if handler.type is None else ast.unparse(handler.type)
    return "ImportError" in caught or "ModuleNotFoundError" in caught


def format_tree(modules: Mapping[str, str]) -> str:
    """Return a tree that the imports of the modules allow, a folder a line.

    :raises ValueError: Some modules import each other in a circle.
    """
    missing = {
        module: {found.target for found in _imports(ast.parse(source), module, modules)}
        & modules.keys() - {module}
        for module, source in modules.items()
    }
    lines: list[list[str]] = []
    while missing:
        ready = [module for module, imports in missing.items() if not imports & missing.keys()]
        if not ready:
            raise ValueError(f"circles among {', '.join(sorted(missing))}")
        current = lines[-1][0] if lines else ""
        module = min(ready, key=lambda name: (_rank(name), _folder_path(name, modules) != current, name))
        del missing[module]
        if _folder_path(module, modules) != current:
            lines.append([_folder_path(module, modules)])
        lines[-1].append("__init__" if _is_package(module, modules) else module.rpartition(".")[2])
    return "\n".join(wrapped for line in lines for wrapped in _wrap(*line))


def _wrap(folder: str, *modules: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(modules), MAX_LINE_LENGTH - len(folder) - 1, break_on_hyphens=False):
        yield f"{folder} {line}"


def find_size_breaches(modules: Mapping[str, str]) -> list[str]:
    """Return modules that are too long or have no docstring."""
    breaches = []
    for module, source in modules.items():
        if (lines := len(source.splitlines())) > MAX_MODULE_LINES:
            breaches.append(f"{module}: {lines} lines; at most {MAX_MODULE_LINES}")
        if not ast.get_docstring(ast.parse(source)):
            breaches.append(f"{module}: no docstring")
    return breaches


def _module_name(path: Path, root: Path) -> str:
    parts = (root.name, *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _folder(module: str) -> str:
    """Return the first name below the package: `core` for `airflow_provider_flows.core.flow_run`."""
    return module.split(".")[1] if "." in module else ""


def _is_package(module: str, modules: Mapping[str, str]) -> bool:
    return any(other.startswith(f"{module}.") for other in modules)


def _folder_path(module: str, modules: Mapping[str, str]) -> str:
    """Return the folder of a module as a tree has it: `core/polling`, or `.` for the package itself."""
    parts = module.split(".")[1:]
    return "/".join(parts if _is_package(module, modules) else parts[:-1]) or "."


def _rank(module: str) -> int:
    name = _folder(module) or "__init__"
    return _PRINT_ORDER.index(name) if name in _PRINT_ORDER else len(_PRINT_ORDER)


def _forbidden(module: str, target: str, positions: Mapping[str, int]) -> str | None:
    """Return why a module must not import another, or None if it may."""
    here, there = _folder(module), _folder(target)
    library = target.partition(".")[0]
    reason = None
    if (here, target) in _ALLOWED:
        return None
    if library != PACKAGE:
        reason = _forbidden_library(here, library)
    elif "emulator" in {here, there} and here != there:
        reason = "the emulator and the rest of the package do not import each other"
    elif target != module and positions.get(target, -1) > positions.get(module, sys.maxsize):
        reason = "it comes later in the tree, and imports run downward only"
    return reason


def _forbidden_library(folder: str, library: str) -> str | None:
    if folder in _PURE and library not in _PURE_LIBRARIES:
        return f"{folder}/ uses the standard library, pendulum and pybase64 only"
    if folder in _WITHOUT_AIRFLOW and library == "airflow":
        return f"{folder}/ does not use Airflow"
    if folder not in {"transport", "emulator"} and library in _HTTP_LIBRARIES:
        return "HTTP libraries are used in transport/ only"
    return None


def _imports(tree: ast.Module, module: str, modules: Mapping[str, str]) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(name.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _resolve_base(node, module, modules)
            for name in node.names:
                full_name = f"{base}.{name.name}"
                yield Import(full_name if full_name in modules else base, node.lineno)


def _resolve_base(node: ast.ImportFrom, module: str, modules: Mapping[str, str]) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + _is_package(module, modules)]
    return ".".join([*parts, node.module] if node.module else parts)


def _sleeps(tree: ast.Module) -> list[int]:
    lines = []
    for node in ast.walk(tree):
        calls = isinstance(node, ast.Attribute) and node.attr == "sleep" and ast.unparse(node.value) == "time"
        imports = (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and any(name.name == "sleep" for name in node.names)
        )
        if calls or imports:
            lines.append(node.lineno)
    return lines


if __name__ == "__main__":
    print(format_tree(read_modules(Path(__file__).parents[2] / PACKAGE)))  # noqa: T201  # a command
