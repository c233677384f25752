"""The floors of the house: which room may import which, and that there is no circle."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "tclip"
# The rooms, lowest first. A module imports from its own room and from those before it.
ROOMS = (
    "files",
    "folder_lock",
    "config",
    "tables",
    "model_kind",
    "hardware",
    "quant",
    "kernels",
    "parallel",
    "losses",
    "processing",
    "models",
    "engine",
    "interop",
    "packed",
    "inference",
    "prompts",
    "data",
    "evals",
    "run",
    "loading",
    "export",
    "demo",
    "train",
    "plan",
    "report",
    "bench",
    "cli",
)


def modules() -> dict[str, ast.Module]:
    return {
        ".".join(("tclip", *file.relative_to(ROOT).with_suffix("").parts)): ast.parse(
            file.read_text()
        )
        for file in sorted(ROOT.rglob("*.py"))
    }


def imports(tree: ast.AST, names: set[str]) -> set[str]:
    """Modules of tclip that the code imports, wherever it does so."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name, names) else node.module for name in full}
    return {name for name in found if name.partition(".")[0] == "tclip"}


def is_module(name: str, names: set[str]) -> bool:
    return name in names or f"{name}.__init__" in names


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_room_has_its_floor():
    found = {room(name) for name in modules()} - {"__init__"}
    assert found == set(ROOMS)


def test_no_module_imports_upwards():
    trees = modules()
    names = set(trees)
    upward = [
        f"{name} imports {imported}"
        for name, tree in trees.items()
        if room(name) != "__init__"
        for imported in imports(tree, names)
        if imported != "tclip" and ROOMS.index(room(imported)) > ROOMS.index(room(name))
    ]
    assert upward == []


def test_modules_import_each_other_in_no_circle():
    trees = modules()
    names = set(trees)

    def file_of(name: str) -> str:
        return name if name in names else f"{name}.__init__"

    graph = {
        # A module of a package may import the package's other modules, whose __init__ runs first.
        name: {file_of(imported) for imported in imports(tree, names)} - {name}
        for name, tree in trees.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
