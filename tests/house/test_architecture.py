"""The shape of the house: arrows point downward, and every room says what it holds."""

import ast
import re
import subprocess
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers.root import ROOT

# From the ground up: a module imports from its own floor and from those below. Each floor is a room
# (`graddrop.step` means all in it) or a few files; a new module is given its place here.
FLOORS = (
    ("graddrop.kernels",),  # 1. device code, and the tables that it reads
    ("graddrop.mask",),  # 2. the definitions
    ("graddrop.reference", "graddrop.schedules"),
    ("graddrop.step",),  # 3. one step of many tensors
    ("graddrop.state",),  # 4. what an optimizer remembers between two steps
    # 5. what users import
    ("graddrop.optimizer_state",),
    ("graddrop.optimizer_masks",),
    ("graddrop.functional", "graddrop.mask_makers", "graddrop.methods", "graddrop.optimizer"),
    ("graddrop.testing",),
    ("graddrop.exemptions",),
    ("graddrop.categories", "graddrop.method_pages", "graddrop.trainer", "graddrop.unfreezing"),
    ("graddrop",),
    # 6. fine-tuning on XGLUE: the tables that people extend, then room upon room
    (
        "graddrop.xglue.locks",
        "graddrop.xglue.names",
        "graddrop.xglue.textfile",
        "graddrop.xglue.whole_file",
    ),
    ("graddrop.xglue.adapters",),
    ("graddrop.xglue.tasks", "graddrop.xglue.methods", "graddrop.xglue"),
    ("graddrop.xglue.controls",),
    ("graddrop.xglue.config", "graddrop.xglue.settings"),
    ("graddrop.xglue.mini",),
    ("graddrop.xglue.data",),
    ("graddrop.xglue.heads",),
    ("graddrop.xglue.scores",),
    ("graddrop.xglue.training",),
    ("graddrop.xglue.sweep",),
    ("graddrop.xglue.report",),
    ("graddrop.xglue.commands",),
    ("graddrop.cli",),  # the command line
)

# Rooms: floors that are folders. `graddrop` and `graddrop.xglue` are houses, and list their files.
ROOMS = {name for names in FLOORS for name in names} - {"graddrop", "graddrop.xglue"}

# What no file of this project contains, and why; classes of one letter keep this table clean.
FORBIDDEN = {
    r"(?<![\w.:~-])/(work|opt|root|home|mnt)/": "a path of one machine",
    r"pypi[.]org|pythonhosted[.]org": "a package index: pip knows its own",
    r"\b[Ii]ssue #?\d": "the project explains itself without a tracker",
    r"\b(TO[D]O|FIX[M]E|X[X]X)\b": "work put off",
    r"# type: ign[o]re(?!\[)|# no[q]a(?!: [A-Z])": "a silenced check that does not say which",
    r"\bx[f]ail\b|\bfl[a]ky\b|\breruns\b": "a test that may fail",
    r"except( Exception)?: *pass": "a swallowed error",
}


def sources() -> dict[str, Path]:
    """Every module of the package by its full name, links followed."""
    found = {}
    for folder, name in (("graddrop", "graddrop"), ("kernels", "graddrop.kernels")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((name, *parts))] = path
    return found


def imports(module: str, is_package: bool, source: str, modules: set[str]) -> Iterator[str]:
    """Modules of this project that a module imports, inside functions as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_package
            base = module.split(".")[: -up or None] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield inner if inner in modules else origin


def floor(module: str) -> int:
    """Floor of a module of ours, counted from the ground.

    Raises:
        LookupError: the table of floors does not know the module.
    """
    for level, names in enumerate(FLOORS):
        for name in names:
            if module == name or (name in ROOMS and module.startswith(name + ".")):
                return level
    raise LookupError(f"{module} stands on no floor: add it to FLOORS in {Path(__file__).name}")


def upward_arrows(module: str, is_package: bool, source: str, modules: set[str]) -> list[str]:
    """What a module must not import: floors above it, and what is not installed with it."""
    wrong = []
    for target in imports(module, is_package, source, modules):
        top = target.split(".")[0]
        outside = top in ("kernels", "tests", "bench")
        if outside or (top == "graddrop" and floor(target) > floor(module)):
            wrong.append(f"{module} imports {target}")
    return wrong


def arrows() -> dict[str, set[str]]:
    """For each module of the package, the modules of the package that it imports."""
    modules = sources()
    graph = {}
    for name, path in modules.items():
        found = imports(name, path.stem == "__init__", path.read_text(), set(modules))
        graph[name] = {target for target in found if target in modules} - {name}
    return graph


def test_arrows_point_downward() -> None:
    """No module imports from a floor above its own."""
    modules = sources()
    assert len(modules) > len(FLOORS)
    wrong = [
        arrow
        for name, path in modules.items()
        for arrow in upward_arrows(name, path.stem == "__init__", path.read_text(), set(modules))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("graddrop.mask", "from graddrop.reference import adamw_step_"),
        ("graddrop.mask", "def f():\n    from . import reference"),
        ("graddrop.kernels.gpu.step", "from ...mask import TILE"),
        ("graddrop.kernels.gpu.step", "from .. import abi\nimport graddrop.mask"),
        ("graddrop.optimizer", "from graddrop import FusedGradDropAdamW"),
        ("graddrop.xglue.data.splits", "import tests"),
    ],
)
def test_an_upward_arrow_is_seen(module: str, source: str) -> None:
    """Negative control: each of these lines breaks the law, and exactly once."""
    assert len(upward_arrows(module, False, source, set(sources()))) == 1


def test_no_module_waits_for_itself() -> None:
    """Modules can be read in some order, each after all that it imports."""
    graph = arrows()
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(graph)
    with pytest.raises(CycleError):  # negative control
        TopologicalSorter(graph | {order[0]: {order[-1]}, order[-1]: {order[0]}}).prepare()


def tracked_texts() -> dict[str, str]:
    """Every text file under version control."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout: " + listing.stderr.strip())
    texts = {}
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink() and b"\0" not in path.read_bytes():
            texts[name] = path.read_text(encoding="utf-8")
    return texts


def offences(name: str, text: str) -> list[str]:
    """Lines of a text that contain what no file of this project contains."""
    return [
        f"{name}:{number}: {why}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, why in FORBIDDEN.items()
        if re.search(pattern, line)
    ]


def test_files_speak_of_the_project_alone() -> None:
    """No paths of one machine, no work put off, no softened checks."""
    texts = tracked_texts()
    assert [line for name, text in texts.items() for line in offences(name, text)] == []
    halves = (("see /ho", "me/x"), ("# TO", "DO later"), ("# type: ", "ignore"), ("pypi", ".org"))
    for sample in map("".join, halves):  # negative control
        assert len(offences("sample", sample)) == 1


def raised(function: ast.AST) -> set[str]:
    """Names of the errors that a function's own statements raise."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            callee = node.exc.func
            if isinstance(callee, ast.Name | ast.Attribute):
                names.add(callee.id if isinstance(callee, ast.Name) else callee.attr)
    return names


def undocumented(module: str, source: str) -> list[str]:
    """Public functions that raise an error which their docstring does not name.

    Constructors are documented in their class; properties and `__magic__` methods by the language.
    """
    wrong = []
    scopes: list[tuple[str, ast.AST, str]] = [(module, ast.parse(source), "")]
    while scopes:
        prefix, scope, class_doc = scopes.pop()
        for node in ast.iter_child_nodes(scope):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                scopes.append((f"{prefix}.{node.name}", node, ast.get_docstring(node) or ""))
            if not isinstance(node, ast.FunctionDef):
                continue
            if node.name.startswith("_") and node.name != "__init__":
                continue
            doc = class_doc if node.name == "__init__" else ast.get_docstring(node) or ""
            absent = sorted(error for error in raised(node) if error not in doc)
            wrong += [f"{prefix}.{node.name} raises {error}" for error in absent]
    return wrong


def test_docstrings_name_the_errors() -> None:
    """A public function that raises says so in its docstring."""
    wrong = [
        line for name, path in sources().items() for line in undocumented(name, path.read_text())
    ]
    assert wrong == []
    silent = 'def f():\n    """Do."""\n    raise ValueError("x")\n'  # negative control
    assert undocumented("sample", silent) == ["sample.f raises ValueError"]


# What torch makes on its default device, which is the user's, unless it is told where.
CREATORS = {"tensor", "empty", "zeros", "ones", "full", "arange", "as_tensor", "rand", "randn"}


def homeless(source: str) -> list[int]:
    """Lines that make a tensor without saying on which device."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CREATORS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and "device" not in {keyword.arg for keyword in node.keywords}
    ]


def test_the_core_says_where_its_tensors_are() -> None:
    """A table that follows torch.set_default_device lies where its reader does not look."""
    core = {name: p for name, p in sources().items() if not name.startswith("graddrop.xglue")}
    found = {name: homeless(path.read_text()) for name, path in core.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert homeless("torch.zeros(3)\ntorch.zeros(3, device=d)") == [1]  # negative control


def test_no_two_test_files_have_one_name():
    """Pytest imports them by name alone: the second would not be collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) > 80 and len(names) == len(set(names))
