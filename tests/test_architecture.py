"""Tests of the package's tree, imports and sizes, and of the check that finds breaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.layering import (
    MAX_MODULES,
    MAX_TOP_LEVEL_MODULES,
    PACKAGE,
    find_layering_breaches,
    find_size_breaches,
    find_version_branches,
    format_tree,
    parse_tree,
    read_modules,
)

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / PACKAGE
TREE = """
. __init__
core __init__ retry run
services __init__
services/generio __init__ api
transport __init__ blocking
. connection base_hook
storage __init__ paths
. hooks triggers operators
drawing __init__
plugin __init__
emulator __init__ app __main__
cli __init__ start
"""


def test_imports_run_downward_in_the_tree() -> None:
    """The tree names every module; a module imports only modules before it and its folder's libraries."""
    breaches = find_layering_breaches(read_modules(FOLDER), parse_tree())
    assert not breaches, "\n".join(breaches)


def test_one_module_knows_the_versions_of_airflow() -> None:
    """No other module compares versions, handles a missing part of Airflow, or looks for a feature of it."""
    assert not find_version_branches(read_modules(FOLDER))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("try:\n    from airflow.sdk import RetryPolicy\nexcept ImportError:\n    pass", True),
        (
            "try:\n    import airflow.state\nexcept (OSError, ModuleNotFoundError):\n    pass",
            True,
        ),
        ("with suppress(ImportError):\n    import airflow.state", True),
        ("from airflow.version import version", True),
        ("from airflow import __version__", True),
        (
            "from airflow.providers.http.version_compat import AIRFLOW_V_3_1_PLUS",
            True,
        ),
        ("from importlib.metadata import version\nversion('apache-airflow-core')", True),
        ("from airflow.triggers.base import BaseTrigger\nX = hasattr(BaseTrigger, 'on_kill')", True),
        ("from airflow import models\nX = inspect.signature(models.Connection.get)", True),
        ("from airflow.sdk import conf\nX = hasattr(path, 'protocol')", False),
        ("try:\n    import fast_simplification\nexcept ImportError:\n    pass", False),
        (f"try:\n    from {PACKAGE}.plugin.routes import x\nexcept ImportError:\n    pass", False),
        ("try:\n    from airflow.state import x\nexcept OSError:\n    pass", False),
    ],
)
def test_a_version_branch_is_found(source: str, *, found: bool) -> None:
    """The check finds each form in which a module asks for Airflow's version, and no other import."""
    assert len(find_version_branches({f"{PACKAGE}.hooks": source})) == int(found)
    assert not find_version_branches({f"{PACKAGE}.compat": source})


@pytest.mark.parametrize("folder", [PACKAGE, "tools"])
def test_modules_have_a_docstring_and_are_not_too_long(folder: str) -> None:
    """Every module has a docstring and at most 500 lines."""
    breaches = find_size_breaches(read_modules(ROOT / folder))
    assert not breaches, "\n".join(breaches)


def test_number_of_modules_is_bounded() -> None:
    """The package has at most 131 modules, not counting `__init__`, and at most 15 files at its top."""
    modules = [path for path in FOLDER.rglob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MAX_MODULES
    assert len(list(FOLDER.glob("*.py"))) <= MAX_TOP_LEVEL_MODULES


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        # libraries
        ("core.run", "import requests", "standard library, pendulum and pybase64 only"),
        (
            "core.run",
            "def f():\n    from airflow.sdk import conf",
            "standard library, pendulum and pybase64 only",
        ),
        ("services.generio.api", "import aiohttp", "standard library, pendulum and pybase64 only"),
        ("transport.blocking", "import airflow.sdk", "does not use Airflow"),
        ("drawing", "from airflow.sdk import DAG", "does not use Airflow"),
        ("emulator.app", "from airflow.sdk import DAG", "does not use Airflow"),
        ("plugin", "import httpx", "HTTP libraries are used in transport/ only"),
        ("base_hook", "import aiohttp", "HTTP libraries are used in transport/ only"),
        # imports that run upward, in each form
        ("core.retry", f"import {PACKAGE}.core.run", "imports run downward only"),
        ("core.retry", f"from {PACKAGE}.core import run", "imports run downward only"),
        ("core.retry", f"from {PACKAGE}.core.run import FlowState", "imports run downward only"),
        ("core.retry", "from .run import FlowState", "imports run downward only"),
        ("core.retry", "from . import run", "imports run downward only"),
        ("services.generio.api", "from ...hooks import FlowsHook", "imports run downward only"),
        ("core", f"from {PACKAGE}.core.run import FlowState", "imports run downward only"),
        ("", f"def __getattr__(name):\n    from {PACKAGE}.core import run", "imports run downward only"),
        ("storage.paths", f"from {PACKAGE}.hooks import FlowsHook", "imports run downward only"),
        ("hooks", f"def f():\n    from {PACKAGE}.triggers import X", "imports run downward only"),
        (
            "triggers",
            f"if TYPE_CHECKING:\n    from {PACKAGE}.operators import X",
            "imports run downward only",
        ),
        # the emulator
        ("hooks", f"import {PACKAGE}.emulator", "do not import each other"),
        ("cli.start", f"from {PACKAGE}.emulator.app import build", "do not import each other"),
        ("plugin", f"from {PACKAGE}.emulator.__main__ import main", "do not import each other"),
        ("emulator.app", f"from {PACKAGE}.core.run import FlowState", "do not import each other"),
        # sleeps
        ("operators", "import time\ntime.sleep(1)", "time.sleep belongs to"),
        ("hooks", "from time import sleep", "time.sleep belongs to"),
        # differences from the tree
        ("core.other", "", f"{PACKAGE}.core.other is not in the tree"),
    ],
)
def test_a_violation_of_the_tree_is_found(module: str, source: str, reason: str) -> None:
    """The check finds an import, a library, a sleep or a module that breaks the tree, and only that."""
    name = f"{PACKAGE}.{module}".rstrip(".")
    (breach,) = find_layering_breaches(
        {**dict.fromkeys(parse_tree(TREE), ""), name: source}, parse_tree(TREE)
    )
    assert breach.startswith(name)
    assert reason in breach


def test_module_of_the_tree_that_does_not_exist_is_found() -> None:
    """The check finds a name in the tree without a module, and one that is there twice."""
    modules = dict.fromkeys(parse_tree(TREE), "")
    tree = parse_tree(f"{TREE}core other\ncore run")
    assert find_layering_breaches(modules, tree) == [
        f"{PACKAGE}.core.run is in the tree twice",
        f"{PACKAGE}.core.other is in the tree, but does not exist",
    ]


def test_imports_that_run_downward_are_allowed() -> None:
    """The check accepts every form of downward import, the folder's libraries, and the exceptions."""
    modules = dict.fromkeys(parse_tree(TREE), "") | {
        f"{PACKAGE}.{name}": source
        for name, source in {
            "core.run": f"import enum\nimport pendulum\nfrom {PACKAGE} import X\nfrom .retry import Retry",
            "services.generio.api": "import pybase64\nfrom ...core.run import X\nfrom ...core import run",
            "transport.blocking": "import time\nimport requests\nfrom ..core.run import X\ntime.sleep(1)",
            "base_hook": "from airflow.sdk import BaseHook\nif TYPE_CHECKING:\n    import requests",
            "operators": f"from .hooks import FlowsHook\ndef f():\n    from {PACKAGE}.triggers import X",
            "drawing": "from ..core import run",
            "emulator.app": "import fastapi, requests, time\ntime.sleep(1)\nfrom . import X",
            "cli.start": f"from {PACKAGE}.emulator.__main__ import main",
        }.items()
    }
    assert find_layering_breaches(modules, parse_tree(TREE)) == []
    assert find_layering_breaches(modules, parse_tree(format_tree(modules))) == []


def test_an_import_cycle_has_no_tree() -> None:
    """Modules that import each other, if only for types, have no order, and no tree is printed."""
    modules = {
        f"{PACKAGE}.core.retry": "if TYPE_CHECKING:\n    from .run import FlowRun",
        f"{PACKAGE}.core.run": "from .retry import Retry",
    }
    with pytest.raises(ValueError, match=r"circles among airflow_provider_flows\.core\.retry"):
        format_tree(modules)


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        ('"""A docstring."""\n' + "x = 1\n" * 500, ["m: 501 lines; at most 500"]),
        ("x = 1", ["m: no docstring"]),
        ('"""A docstring."""\n' + "x = 1\n" * 499, []),
    ],
)
def test_a_violation_of_the_sizes_is_found(source: str, reasons: list[str]) -> None:
    """The check finds a module that is too long or has no docstring, and accepts any other."""
    assert find_size_breaches({"m": source}) == reasons
