"""The pages of the documentation: links lead somewhere, and every public name has its place.

`make docs` holds them to more: there every reference of a docstring leads somewhere, too.
"""

import ast
import inspect
import os
import re
import types
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers.root import ROOT

import graddrop

DOCS = ROOT / "docs"
INTERFACE = (DOCS / "api.md").read_text(encoding="utf-8")
PAGES = [page for folder in (".", "docs/**", "bench/**") for page in ROOT.glob(f"{folder}/*.md")]


def headings(text: str) -> set[str]:
    """Anchors of a page's headings, as code hosts and the site make them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in found}


def dead_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading in it."""
    dead = []
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        file = Path(os.path.normpath(page.parent / target)) if target else page
        if target and not file.exists():
            dead.append(target)
        elif anchor and anchor not in headings(file.read_text("utf-8") if target else text):
            dead.append(f"{target}#{anchor}")
    return dead


def test_links_lead_somewhere() -> None:
    """Files and headings."""
    assert len(PAGES) > 20
    found = {page: dead_links(page, page.read_text(encoding="utf-8")) for page in PAGES}
    assert {page: links for page, links in found.items() if links} == {}
    sample = "# One two\n[a](#one-two) [b](#one) [c](absent.md) [d](knobs.md#facts) [e](knobs.md#x)"
    assert dead_links(DOCS / "new.md", sample) == ["#one", "absent.md", "knobs.md#x"]


def test_every_page_is_in_the_contents() -> None:
    """Of the site; and the README's table names those that are read first."""
    contents = re.findall(r"^(?:.*<)?([\w/*-]+)>?$", (DOCS / "index.md").read_text(), re.MULTILINE)
    listed = {path for name in contents for path in DOCS.glob(f"{name}.md")}
    assert set(DOCS.glob("**/*.md")) - {DOCS / "index.md"} - listed == set()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = {path.name for path in DOCS.glob("*.md")} - {"index.md", "api.md"}
    assert {name for name in first if f"](docs/{name})" not in readme} == set()


# Rooms of the front door that no page shows: a script, and what tests of kernels are made of.
UNSHOWN = {"graddrop.method_pages", "graddrop.testing"}
MODULES = [
    f"graddrop.{path.stem}"
    for path in sorted((ROOT / "graddrop").glob("[!_]*.py"))
    if path.stem != "cli" and f"graddrop.{path.stem}" not in UNSHOWN
]
# The optimizer's class is written in several files, and shown as one.
INHERITING = (
    "autoclass:: graddrop.FusedGradDropAdamW\n   :members:\n   :inherited-members: Optimizer\n"
)
LINE = graddrop.FusedGradDropAdamW.__mro__
PARTS = LINE[1 : LINE.index(torch.optim.Optimizer)]


def public(module: types.ModuleType) -> list[str]:
    """Classes and functions that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


@pytest.mark.parametrize("name", MODULES)
def test_public_names_stand_in_the_interface(name: str) -> None:
    """As a whole module, or one by one; what `graddrop` exports stands there under that name."""
    if name in ("graddrop.trainer", "graddrop.unfreezing"):
        pytest.importorskip("transformers", reason="transformers is not installed")
    whole = f".. automodule:: {name}\n" in INTERFACE
    module = import_module(name)
    shown = set(re.findall(r"^.. auto\w+:: ([\w.]+)$", INTERFACE, re.MULTILINE))
    if INHERITING in INTERFACE:
        shown |= {f"graddrop.{base.__name__}" for base in PARTS}
    missing = [n for n in public(module) if not whole and f"graddrop.{n}" not in shown]
    assert missing == []


def test_what_the_package_exports_stands_in_the_interface() -> None:
    """Also what is exported from a module that is shown as a whole."""
    absent = [name for name in graddrop.__all__ if name not in INTERFACE and name != "__version__"]
    assert [name for name in absent if name != "trainer_kwargs"] == []


def undescribed(function: ast.FunctionDef, documentation: str) -> list[str]:
    """Arguments of a function that its docstring does not describe."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    names = {argument.arg for argument in arguments} - {"self", "cls"}
    lines = re.findall(r"^ +\**([\w, *]+?)(?: \([^)]*\))?:", documentation, re.MULTILINE)
    described = {name.strip(" *") for line in lines for name in line.split(",")}
    return sorted(name for name in names - described if not name.startswith("_"))


def undocumented(source: str) -> list[str]:
    """Public names without a docstring, and arguments that none describes.

    A function of one argument may leave it to its summary; a callback has its framework's.
    """
    found = []
    scopes: list[tuple[str, ast.AST, bool]] = [("", ast.parse(source), False)]
    while scopes:
        prefix, scope, framework = scopes.pop()
        for node in ast.iter_child_nodes(scope):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            documentation = ast.get_docstring(node, clean=False)
            if documentation is None:
                found.append(prefix + node.name)
            elif isinstance(node, ast.ClassDef):
                called = any("Callback" in ast.unparse(base) for base in node.bases)
                scopes.append((f"{prefix}{node.name}.", node, called))
                constructor = [f for f in node.body if getattr(f, "name", "") == "__init__"]
                for function in constructor:
                    wrong = undescribed(function, documentation)
                    found += [f"{prefix}{node.name}({name})" for name in wrong]
            elif not framework and len(node.args.args) + len(node.args.kwonlyargs) > 2:
                wrong = undescribed(node, documentation)
                found += [f"{prefix}{node.name}({name})" for name in wrong]
    return found


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name: str) -> None:
    """Each has a docstring, and each argument of those that take several a line in it."""
    path = ROOT / (name.replace(".", "/") + ".py")
    assert undocumented(path.read_text(encoding="utf-8")) == []


def test_an_undocumented_name_is_seen() -> None:
    """Negative controls."""
    described = '"""Do.\n\n    Args:\n        a, b: numbers.\n        c: one more.\n    """'
    assert undocumented(f"def f(a, b, c):\n    {described}") == []
    assert undocumented(f"def f(a, b, d):\n    {described}") == ["f(d)"]
    assert undocumented("def f(a): pass\nclass C:\n    'C.'\n    def g(self): pass") == ["f", "C.g"]
    assert undocumented("class C:\n    'C.'\n    def __init__(self, a): pass") == ["C(a)"]


def typed_by_accident(source: str) -> list[str]:
    """Docstrings of a module's constants whose first line has a colon: the site reads a type."""
    body = ast.parse(source).body
    pairs = zip(body, body[1:], strict=False)
    texts = [
        after.value.value
        for before, after in pairs
        if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr)
        if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    ]
    plain = [re.sub(r":\w+:`|``.*?``", "", text.splitlines()[0]) for text in texts]
    return [text for text in plain if ":" in text]


@pytest.mark.parametrize("name", MODULES)
def test_constants_are_not_given_types_by_accident(name: str) -> None:
    """What `make docs` would stop at, where Sphinx is."""
    path = ROOT / (name.replace(".", "/") + ".py")
    assert typed_by_accident(path.read_text(encoding="utf-8")) == []
    assert typed_by_accident('A = 1\n"""A number: one."""')  # negative controls
    assert typed_by_accident('A: int = 1\n"""A number: one."""')
    assert not typed_by_accident('A = 1\n"""See :func:`f`.\n\nA number: one."""')


def test_every_knob_has_its_line() -> None:
    """Arguments of the optimizer that AdamW does not have stand on the page of knobs, or below."""
    ours = set(inspect.signature(graddrop.FusedGradDropAdamW).parameters)
    ours -= set(inspect.signature(torch.optim.AdamW).parameters)
    text = (DOCS / "knobs.md").read_text() + (DOCS / "distributed.md").read_text()
    text += (DOCS / "performance.md").read_text()
    assert {name for name in ours if f"`{name}" not in text} == set()
