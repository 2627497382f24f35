"""Tests that the package keeps its order of layers and its limits of size, and that the checker would see a breach.

How a breach is found is in `tests/support/layering.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.layering import PACKAGE, layering_violations, read_modules, size_violations

ROOT = Path(__file__).parent.parent


def test_imports_of_the_package_run_downward_only() -> None:
    """No module imports from a layer above its own, and each layer keeps to the libraries that it may know."""
    findings = layering_violations(read_modules(ROOT / PACKAGE))
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize("folder", [PACKAGE, "tools"])
def test_modules_and_functions_are_of_a_readable_size(folder: str) -> None:
    """Every module and function is short and shallow enough to be read at once, and says what it is for."""
    findings = size_violations(read_modules(ROOT / folder))
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("flow.run", "import requests", "standard library, pendulum and pybase64 only"),
        (
            "flow.run",
            "def f():\n    from airflow.sdk import conf",
            "standard library, pendulum and pybase64 only",
        ),
        ("flow.run", "from .services.generio import Generio", "nothing in flow/ knows a service"),
        ("flow.services.generio", "from ...hooks import FlowsHook", "hooks is above flow"),
        ("transport.blocking", "import airflow.sdk", "knows nothing of Airflow"),
        ("transport.blocking", f"from {PACKAGE} import hooks", "hooks is above transport"),
        ("hooks", f"from {PACKAGE}.triggers import FlowRunTrigger", "triggers is above hooks"),
        ("hooks", f"import {PACKAGE}.emulator", "do not know each other"),
        ("cli.starting", f"from {PACKAGE}.emulator.app import build", "do not know each other"),
        ("emulator.app", f"from {PACKAGE}.cli.exits import Exit", "do not know each other"),
        ("emulator.app", f"from {PACKAGE}.flow.run import FlowState", "do not know each other"),
        ("emulator.app", "from airflow.sdk import DAG", "knows nothing of Airflow"),
        (
            "triggers",
            f"if TYPE_CHECKING:\n    from {PACKAGE}.operators import X",
            "operators is above triggers",
        ),
        ("operators", "import time\ntime.sleep(1)", "time.sleep belongs"),
        ("hooks", "from time import sleep", "time.sleep belongs"),
        ("flow.retry", "from . import run", "circle"),
    ],
)
def test_breach_of_the_layers_is_found(module: str, source: str, reason: str) -> None:
    """The checker finds an import, a library, a sleep or a circle that breaks the order."""
    modules = dict.fromkeys(
        (
            PACKAGE,
            *(f"{PACKAGE}.{part}" for part in ("flow", "flow.services", "hooks", "triggers", "operators")),
        ),
        "",
    ) | {f"{PACKAGE}.flow.run": "from .retry import again", f"{PACKAGE}.{module}": source}
    assert any(reason in finding for finding in layering_violations(modules)), layering_violations(modules)


def test_imports_that_run_downward_are_let_through() -> None:
    """The checker has nothing against the order as it is meant."""
    modules = {
        PACKAGE: f"def __getattr__(name):\n    from {PACKAGE}.flow import run",
        f"{PACKAGE}.flow": "",
        f"{PACKAGE}.flow.run": "import enum\nimport pendulum\nfrom .errors import FlowError\nfrom .services import S",
        f"{PACKAGE}.flow.errors": f"from {PACKAGE} import __version__",
        f"{PACKAGE}.flow.services": "",
        f"{PACKAGE}.flow.services.generio": "from ..run import FlowRun",
        f"{PACKAGE}.transport": "",
        f"{PACKAGE}.transport.blocking": "import time\nimport requests\nfrom ..flow.run import FlowRun\ntime.sleep(1)",
        f"{PACKAGE}.hooks": "from airflow.sdk import BaseHook\nfrom .connection import Settings",
        f"{PACKAGE}.connection": "from .flow.services import generio",
        f"{PACKAGE}.watch": "from .hooks import FlowsHook",
        f"{PACKAGE}.operators": "from .hooks import FlowsHook\nfrom .links import FlowLink",
        f"{PACKAGE}.links": "def f():\n    from .operators import RunFlowOperator",
        f"{PACKAGE}.emulator": "import fastapi",
        f"{PACKAGE}.emulator.__main__": "",
        f"{PACKAGE}.cli": f"from {PACKAGE}.emulator.__main__ import main",
    }
    assert layering_violations(modules) == []


DOCSTRING = '"""Does one thing.\n\nIt does not do another.\n"""\n'


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (DOCSTRING + "x = 1\n" * 297, "301 lines"),
        (DOCSTRING + "def f():\n" + "    x = 1\n" * 40, "f has 41 lines"),
        (DOCSTRING + "def f():\n if a:\n  for b in c:\n   with d:\n    if e: pass", "f nests 4 deep"),
        (DOCSTRING + "def f():\n try: pass\n except E:\n  if a:\n   if b:\n    if c: pass", "f nests 4 deep"),
        ('"""Only one sentence."""', "two sentences"),
        ("x = 1", "two sentences"),
    ],
)
def test_breach_of_the_limits_is_found(source: str, reason: str) -> None:
    """The checker finds what is too long, too deep, or says too little."""
    assert any(reason in finding for finding in size_violations({"m": source})), size_violations(
        {"m": source}
    )


@pytest.mark.parametrize(
    "source",
    [
        DOCSTRING + "x = 1\n" * 296,
        DOCSTRING + "def f():\n" + "    x = 1\n" * 39,
        DOCSTRING + 'def f():\n    """Says a lot.\n' + "\n    more\n" * 30 + '    """\n' + "    x = 1\n" * 39,
        DOCSTRING
        + "def f():\n if a: pass\n elif b: pass\n elif c: pass\n elif d: pass\n else:\n  for x in y: pass",
    ],
)
def test_what_is_within_the_limits_is_let_through(source: str) -> None:
    """Docstrings do not count as lines of a function, nor a chain of elifs as nesting."""
    assert size_violations({"m": source}) == []
