from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import hepdask

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(hepdask.__file__).resolve().parent
REPOSITORY = Path(__file__).resolve().parent.parent

# Data flows down this list, imports only go up it.
ORDER = (
    "errors",
    "blocks",
    "allocator",
    "isolation",
    "tables",
    "masking",
    "messages",
    "recording",
    "paths",
    "fileset",
    "discovery",
    "endpoints",
    "read_errors",
    "remote",
    "opening",
    "metadata",
    "ranges",
    "tree",
    "mismatch",
    "histograms",
    "accumulator",
    "inplace",
    "metrics",
    "costs",
    "past",
    "failures",
    "completeness",
    "partial",
    "fingerprint",
    "compiled",
    "processor",
    "shipping",
    "store",
    "checkpoints",
    "held",
    "merging",
    "readers",
    "recovery",
    "attempt",
    "watch",
    "rescue",
    "task",
    "replay",
    "columns",
    "progress",
    "stopping",
    "versions",
    "doctor",
    "clusters",
    "executors",
    "luminosity",
    "plan",
    "run_metrics",
    "result",
    "run",
    "runner",
    "outputs",
    "cli",
    "__main__",
)
# Within a package its modules come in this order. Its __init__ holds the seam that they share, and imports them
# inside functions; or it holds what the other rooms see of them, and none of them imports it: the search for
# circles below allows both.
ORDER_WITHIN = {
    "isolation": ("frames", "exceptions", "calls", "child", "server", "ends", "runner"),
    "fileset": ("problems", "values", "documents", "inputs", "dialects"),
    "metadata": ("branches", "facts", "cache"),
    "readers": (
        "uses",
        "ahead",
        "handles",
        "damage",
        "decompression",
        "cut",
        "branches",
        "events",
        "nanoevents",
        "arrays",
    ),
    "fingerprint": (
        "atoms",
        "files",
        "graph",
        "code",
        "sources",
        "origins",
        "walk",
        "modules",
        "definitions",
        "values",
    ),
    "shipping": (
        "options",
        "environment",
        "credentials",
        "arrival",
        "packing",
        "resources",
        "cargo",
    ),
    "store": (
        "names",
        "readme",
        "objects",
        "places",
        "directories",
        "remote",
        "locations",
        "sections",
        "prune",
        "stores",
    ),
    "doctor": ("facts", "findings", "report"),
    "luminosity": ("sections", "files", "books"),
    "progress": ("state", "live", "text", "terminal", "notebook"),
    "clusters": (
        "vocabulary",
        "environment",
        "security",
        "adaptive",
        "systems",
        "local",
        "addresses",
        "batch",
        "kubernetes",
        "ecs",
        "yarn",
        "gateway",
        "own_class",
        "presets",
        "choice",
        "queues",
        "waiting",
        "leaving",
    ),
    "executors": (
        "local",
        "dask_marks",
        "dask_deaths",
        "dask_clients",
        "dask_shipping",
        "dask_examine",
        "dask_endpoints",
        "dask_monitor",
        "dask_tasks",
        "dask_graph",
        "dask_events",
        "dask_local",
        "dask_watch",
        "dask_map",
        "dask_placement",
        "dask_run",
        "dask",
    ),
    "outputs": ("files", "histograms", "plain", "root", "formats", "plots"),
    "cli": (
        "sources",
        "text",
        "options",
        "processors",
        "run",
        "replay",
        "doctor",
        "plan",
        "inspect",
        "cluster",
        "store",
        "sample",
    ),
}
# The command line is written with what every user has.
USES_PUBLIC_NAMES = {"cli", "__main__"}

HEAVY = {
    "IPython",
    "ROOT",
    "XRootD",
    "awkward",
    "coffea",
    "dask",
    "dask_cloudprovider",
    "dask_gateway",
    "dask_jobqueue",
    "dask_kubernetes",
    "dask_yarn",
    "distributed",
    "hist",
    "matplotlib",
    "mplhep",
    "rich",
    "uproot",
}


def modules() -> dict[str, Path]:
    """Find the package's modules, ``readers.handles`` and the like, except its own ``__init__``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and parts[0] != "bundled":  # a copy that the wheel makes of datasets/
            found[name] = path
    return found


def imported_modules(name: str, path: Path, *, at_import_only: bool = False) -> Iterator[str]:
    """Find what a module imports from hepdask: ``ranges``, or an empty string for hepdask itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = statements_run_at_import(tree) if at_import_only else ast.walk(tree)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [*targets_of(node, f"hepdask.{package}".rstrip("."))]
        else:
            continue
        for target in targets:
            if target == "hepdask" or target.startswith("hepdask."):
                yield target.removeprefix("hepdask").removeprefix(".")


def statements_run_at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Walk a module without the bodies of functions and of ``if TYPE_CHECKING``."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        waiting.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))


def targets_of(node: ast.ImportFrom, package: str) -> Iterator[str]:
    """Resolve ``from X import a``: to X.a where that is a module, else to X."""
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        above = parts[: len(parts) - node.level + 1]
        base = ".".join([*above, base] if base else above)
    for alias in node.names:
        path = REPOSITORY.joinpath(*base.split("."), alias.name)
        is_module = path.with_suffix(".py").exists() or (path / "__init__.py").exists()
        yield f"{base}.{alias.name}" if is_module else base


def rank(name: str) -> tuple[int, int]:
    """Return a module's place in the order; a package's ``__init__`` is before its modules."""
    room, _, rest = name.partition(".")
    within = ORDER_WITHIN.get(room, ())
    # a module without a place comes last: test_every_module_has_its_place names it
    first = ORDER.index(room) if room in ORDER else len(ORDER)
    return first, within.index(rest) if rest in within else len(within) if rest else -1


def test_import_is_light() -> None:
    code = (
        "import json, sys; before = set(sys.modules); import hepdask; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
    )
    imported = set(json.loads(run.stdout))
    assert "hepdask" in imported
    assert imported & HEAVY == set()
    assert run.stderr == ""


def test_public_names_are_sorted_and_unique() -> None:
    assert hepdask.__all__ == sorted(set(hepdask.__all__))


@pytest.mark.parametrize("name", hepdask.__all__)
def test_public_name_can_be_imported(name: str) -> None:
    assert getattr(hepdask, name) is not None


def test_dir_lists_the_public_names() -> None:
    assert set(hepdask.__all__) <= set(dir(hepdask))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'hepdask' has no attribute 'Runer'"):
        hepdask.Runer  # noqa: B018  an attribute that isn't there


def test_type_information_is_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_every_module_has_its_place() -> None:
    homeless = [
        name
        for name in modules()
        if name.partition(".")[0] not in ORDER
        or ("." in name and name.split(".", 1)[1] not in ORDER_WITHIN.get(name.split(".")[0], ()))
    ]
    assert homeless == [], "add them to ORDER or ORDER_WITHIN, where their data comes from"


@pytest.mark.parametrize("name", modules())
def test_imports_go_one_way(name: str) -> None:
    for target in imported_modules(name, modules()[name]):
        if target == "":
            assert name in USES_PUBLIC_NAMES, f"{name} imports from hepdask itself: name the module"
        elif target != name and not target.startswith(f"{name}."):
            assert rank(target) < rank(name), f"{name} imports {target}, which comes after it"


def test_no_circles_at_import() -> None:
    graph = {
        name: {
            target
            for target in imported_modules(name, path, at_import_only=True)
            if target not in {"", name}
        }
        for name, path in modules().items()
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("folder", ["processors", "datasets"])
def test_what_a_user_would_write_uses_public_names_only(folder: str) -> None:
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        for line, name in used_names(ast.parse(path.read_text(encoding="utf-8"))):
            assert name in hepdask.__all__, f"{path}:{line}: {name} isn't in hepdask.__all__"


def used_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Find names taken from hepdask with their lines; a submodule counts as a name of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "hepdask":
            is_root = node.module == "hepdask"
            yield from ((node.lineno, a.name if is_root else str(node.module)) for a in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.startswith("hepdask."))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "hepdask":
            yield node.lineno, node.attr


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from hepdask import Runner", ["Runner"]),
        ("import hepdask\nhepdask.Runner()", ["Runner"]),
        ("from hepdask.ranges import EntryRange", ["hepdask.ranges"]),
        ("import hepdask.ranges", ["hepdask.ranges"]),
        ("import numpy", []),
    ],
)
def test_used_names_are_found(source: str, names: list[str]) -> None:
    assert [name for _, name in used_names(ast.parse(source))] == names


def test_imports_in_functions_are_found_but_do_not_run_at_import(tmp_path: Path) -> None:
    path = tmp_path / "handles.py"
    path.write_text(
        "from hepdask.errors import suggest\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from hepdask import errors\n"
        "def f():\n    from ..ranges import EntryRange\n    import hepdask\n"
    )
    assert sorted(imported_modules("readers.handles", path)) == ["", "errors", "errors", "ranges"]
    assert list(imported_modules("readers.handles", path, at_import_only=True)) == ["errors"]
