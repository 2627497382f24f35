"""Tests of the dependencies: all imports are declared, and no version with a known fault is allowed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGE = "airflow_provider_flows"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# `apache-airflow` is a name for these two, and pins both
AIRFLOW = {"apache-airflow-core": "apache-airflow", "apache-airflow-task-sdk": "apache-airflow"}
# what may import the distributions of an extra
EXTRA_MODULES = {
    "checks": ("checks/mesh.py",),
    "emulator": ("emulator/",),
    "images": ("storage/file_source.py",),
    "openlineage": ("batch/operator.py", "worker/lineage.py", "worker/run_tracking.py"),
    "parquet": ("storage/item_files.py",),
    "pytest": ("emulator/pytest_plugin.py",),
}
# The first version of a library without its known faults, as far as they concern this package.
FIRST_SAFE_VERSIONS = {
    "aiohttp": "3.14.5",  # GHSA-2g87-pp6c-29x5: memory and CPU
    "certifi": "2024.7.4",  # CVE-2024-39689
    "jinja2": "3.1.6",  # CVE-2025-27516
    "pillow": "12.3",  # CVE-2026-40192 and those of its release notes
    "pydantic": "2.4",  # CVE-2024-3772
    "pytest": "9.0.3",  # CVE-2025-71176
    "requests": "2.33",  # CVE-2026-25645
    "starlette": "0.47.2",  # CVE-2025-54121; of the later ones see the last test
    "urllib3": "2.8",  # CVE-2026-97687, CVE-2026-97689
}


def _parse(requirements: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(text) for text in requirements]
    return {str(canonicalize_name(one.name)): one for one in parsed}


REQUIRED = _parse(PROJECT["dependencies"])
EXTRAS = {extra: _parse(texts) for extra, texts in PROJECT["optional-dependencies"].items()}


def _imported_names(source: str) -> Iterator[str]:
    """Return the modules of all imports, also of those in functions and for types."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _find_distribution(module: str) -> str | None:
    """Return the distribution that has a module, None for the standard library and this package."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == PACKAGE:
        return None
    names = sorted({str(canonicalize_name(name)) for name in _read_distributions().get(top, [])})
    while len(names) > 1 and "." in module:  # a namespace, or a module that only a newer version has
        path = module.replace(".", "/")
        found = [name for name in names if _installed_files(name) & {f"{path}.py", f"{path}/__init__.py"}]
        names, module = found or names, module.rpartition(".")[0]
    return AIRFLOW.get(names[0], names[0]) if names else f"nothing installed has {module}"


@cache
def _read_distributions() -> Mapping[str, list[str]]:
    """Return the distributions that have each top-level module, which takes a second."""
    return packages_distributions()


@cache
def _installed_files(name: str) -> frozenset[str]:
    return frozenset(str(file) for file in distribution(name).files or ())


def _find_imported_distributions() -> dict[str, set[str]]:
    """Return the distributions that the package imports, each with the files that import it."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        for module in _imported_names(path.read_text()):
            if name := _find_distribution(module):
                found.setdefault(name, set()).add(path.relative_to(ROOT / PACKAGE).as_posix())
    return found


IMPORTED = _find_imported_distributions()


@pytest.mark.parametrize("name", sorted(IMPORTED))
def test_imported_distribution_is_declared(name: str) -> None:
    """A library that any module imports, also in a function or for types, is a dependency, or its extra's."""
    if name in REQUIRED:
        return
    allowed = {path for extra in EXTRAS if name in EXTRAS[extra] for path in EXTRA_MODULES[extra]}
    assert not {file for file in IMPORTED[name] if not file.startswith(tuple(allowed))}


@pytest.mark.parametrize("name", sorted({*REQUIRED, *(name for extra in EXTRAS.values() for name in extra)}))
def test_declared_distribution_is_imported(name: str) -> None:
    """Nothing is required that no module imports."""
    assert name in IMPORTED or name in {canonicalize_name(PACKAGE), "apache-airflow-providers-openlineage"}


def test_imports_of_all_kinds_are_found() -> None:
    """The comparison sees imports at the top, in functions and for types, and modules of namespaces."""
    source = "import urllib3\nif TYPE_CHECKING:\n    from yarl import URL\ndef f():\n    import PIL.Image\n"
    assert set(_imported_names(source)) == {"urllib3", "yarl", "yarl.URL", "PIL.Image"}
    assert _find_distribution("PIL.Image") == "pillow"
    assert (
        _find_distribution("airflow.providers.common.compat.sdk") == "apache-airflow-providers-common-compat"
    )
    assert _find_distribution("airflow.sdk") == "apache-airflow"
    assert _find_distribution("openlineage.client.facet_v2") == "openlineage-python"
    assert {"urllib3", "certifi", "yarl", "structlog", "attrs", "jinja2", "sqlalchemy"} <= IMPORTED.keys()


@pytest.mark.parametrize("name", FIRST_SAFE_VERSIONS)
def test_no_version_with_a_known_fault_is_allowed(name: str) -> None:
    """The lower bound of a library is at least the first version without its known faults."""
    groups = [REQUIRED, *EXTRAS.values()]
    bounds = [
        Version(specifier.version)
        for group in groups
        if name in group
        for specifier in group[name].specifier
        if specifier.operator == ">="
    ]
    assert bounds
    assert min(bounds) >= Version(FIRST_SAFE_VERSIONS[name])


def test_every_dependency_has_a_lower_bound() -> None:
    """A dependency without a lower bound would let any old version in."""
    ours = str(canonicalize_name(PACKAGE))
    unbounded = [
        str(one)
        for group in (REQUIRED, *EXTRAS.values())
        for name, one in group.items()
        if name != ours and not any(specifier.operator == ">=" for specifier in one.specifier)
    ]
    assert unbounded == []


@pytest.mark.parametrize(
    "file", sorted((ROOT / "constraints").glob("py311-airflow-*.txt")), ids=lambda path: path.name
)
def test_constraints_agree_with_the_dependencies(file: Path) -> None:
    """The pinned environments have every dependency, in a version that its bounds allow."""
    pairs = (line.split("==") for line in file.read_text().splitlines() if not line.startswith("#"))
    pins = {str(canonicalize_name(name)): version for name, version in pairs}
    for group in (REQUIRED, *EXTRAS.values()):
        for name, requirement in group.items():
            if name != canonicalize_name(PACKAGE):
                assert requirement.specifier.contains(pins[name]), requirement


def test_pages_do_not_trust_the_host_header() -> None:
    """No page reads a request's URL, which Starlette before 1.0.1 builds from any Host header.

    Nor does one use FileResponse, which Starlette before 0.49.1 lets a Range header slow down: Airflow
    3.1 is bound to such a version.
    """
    sources = {path.name: path.read_text() for path in (ROOT / PACKAGE / "plugin").rglob("*.py")}
    assert not [name for name, source in sources.items() if re.search(r"\brequest\.(base_)?url\b", source)]
    assert not [name for name, source in sources.items() if "FileResponse" in source]
