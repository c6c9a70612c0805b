"""What a stranger gets: the package imports, and hurts nobody, however it is installed."""

import ast
import ctypes
import email
import email.message
import importlib.util
import json
import os
import re
import shutil
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.environments import install, make_environment, run
from helpers.root import ROOT

import graddrop

IMPORT_NAME = "kernels"  # Hugging Face publishes a package of this name; transformers looks for it
LIBRARY = "graddrop/kernels/cpu/graddrop_cpu.so"


@dataclass(frozen=True)
class Installation:
    """One way in which the package is there: an interpreter, its PYTHONPATH, its files."""

    python: Path
    path: str
    home: Path  # folder that contains the package's files

    def run(self, code: str, cwd: Path, **environment: str) -> str:
        """Run Python code in it."""
        return run(self.python, "-c", code, cwd=cwd, PYTHONPATH=self.path, **environment)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for this file."""
    return tmp_path_factory.mktemp("packaging")


@pytest.fixture(scope="module")
def checkout(workshop: Path) -> Path:
    """A copy of this tree as a clone would have it: the link is a link, nothing is compiled."""
    names = {"graddrop", "kernels", "tests", "README.md", "LICENSE", "constraints.txt"}
    names |= {"CITATION.cff"}
    names |= {"pyproject.toml", "setup.py", "MANIFEST.in"}
    unbuilt = shutil.ignore_patterns("__pycache__", "*.so")
    for name in sorted(names):
        source, copy = ROOT / name, workshop / "checkout" / name
        if source.is_dir():
            shutil.copytree(source, copy, symlinks=True, ignore=unbuilt)
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(source, copy)
    return workshop / "checkout"


@pytest.fixture(scope="module")
def sdist(checkout: Path, workshop: Path) -> Path:
    """The unpacked source distribution."""
    command = (sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir")
    run(*command, workshop / "dist", checkout, cwd=workshop)
    (archive,) = (workshop / "dist").glob("*.tar.gz")
    (workshop / "sdist").mkdir()
    run("tar", "-xzf", archive, "-C", workshop / "sdist", cwd=workshop)
    (folder,) = (workshop / "sdist").iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(sdist: Path, workshop: Path) -> Path:
    """A wheel built from the source distribution, as pip builds it."""
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir")
    run(*command, workshop / "dist", sdist, cwd=workshop)
    (archive,) = (workshop / "dist").glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def bare_python(workshop: Path) -> Path:
    """An interpreter that has our dependencies and not us."""
    return make_environment(workshop / "bare")


@pytest.fixture(scope="module")
def without_compiler(checkout: Path, workshop: Path) -> Installation:
    """An editable installation on a machine whose compilers fail."""
    python = make_environment(workshop / "editable")
    install(python, "--editable", checkout, cwd=workshop, CC="false", CXX="false")
    return Installation(python, "", checkout)


@pytest.fixture(scope="module")
def from_wheel(wheel: Path, workshop: Path) -> Installation:
    """An installation of the wheel."""
    python = make_environment(workshop / "installed")
    install(python, wheel, cwd=workshop)
    site = python.parent.parent / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    return Installation(python, "", site)


PROBE = """
import json, sys
import torch
before = set(sys.modules)
import graddrop
loaded = sorted({name.split(".")[0] for name in set(sys.modules) - before})
import graddrop.kernels.abi
print(json.dumps({"kernels": graddrop.kernels.abi.__file__, "loaded": loaded}))
"""


@pytest.fixture(scope="module", params=["wheel", "editable", "sdist", "checkout"])
def installation(request: pytest.FixtureRequest, bare_python: Path) -> Installation:
    """Every way in which the package can be there."""
    if request.param == "wheel":
        return request.getfixturevalue("from_wheel")
    if request.param == "editable":
        return request.getfixturevalue("without_compiler")
    folder = request.getfixturevalue(request.param)
    return Installation(bare_python, str(folder), folder)


@pytest.fixture(scope="module")
def probed(installation: Installation, workshop: Path) -> dict[str, Any]:
    """What importing us there loads."""
    return json.loads(installation.run(PROBE, cwd=workshop))


def python_files(folder: Path) -> set[str]:
    """Python files of the package, links followed, relative to the folder that contains it."""
    walk = os.walk(folder / "graddrop", followlinks=True)
    paths = (Path(where, name) for where, _, names in walk for name in names)
    return {path.relative_to(folder).as_posix() for path in paths if path.suffix == ".py"}


def test_kernels_import_from_every_installation(
    installation: Installation, probed: dict[str, Any]
) -> None:
    """`graddrop.kernels` imports, from the installation's own files."""
    assert probed["kernels"] == str(installation.home / "graddrop/kernels/abi.py")


def test_importing_us_imports_neither_triton_nor_transformers(probed: dict[str, Any]) -> None:
    """`import graddrop` costs torch, and nothing else of any size."""
    assert "graddrop" in probed["loaded"]
    heavy = {"triton", "transformers", "datasets", "accelerate", "scipy", "matplotlib"}
    assert not heavy & set(probed["loaded"])


def test_nothing_of_ours_is_called_kernels_once_installed(
    from_wheel: Installation, without_compiler: Installation, bare_python: Path, tmp_path: Path
) -> None:
    """`import kernels` finds what it finds without us; a checkout on the path would answer."""
    code = f"import importlib.util as u; s = u.find_spec({IMPORT_NAME!r}); "
    code += "print(s and list(s.submodule_search_locations))"
    without_us = Installation(bare_python, "", tmp_path).run(code, cwd=tmp_path)
    assert from_wheel.run(code, cwd=tmp_path) == without_us
    assert without_compiler.run(code, cwd=tmp_path) == without_us
    if without_us.strip() == "None":  # the negative control needs the name to be free
        on_path = Installation(bare_python, str(without_compiler.home), without_compiler.home)
        assert on_path.run(code, cwd=tmp_path) != without_us


def test_wheel_holds_every_source_file_under_one_name(checkout: Path, wheel: Path) -> None:
    """Top level exactly `graddrop`; every Python file of ours is in it, `py.typed` too."""
    names = zipfile.ZipFile(wheel).namelist()
    ours = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in ours} == {"graddrop"}
    assert {name for name in ours if name.endswith(".py")} == python_files(checkout)
    assert "graddrop/py.typed" in ours
    assert ours - python_files(checkout) <= {"graddrop/py.typed", LIBRARY}


def metadata_of(wheel: Path) -> email.message.Message:
    """What an index page knows of a wheel."""
    (name,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA"))
    return email.message_from_string(zipfile.ZipFile(wheel).read(name).decode("utf-8"))


def test_core_requires_torch_only(wheel: Path) -> None:
    """Whoever wants the optimizer alone installs nothing else; Triton is an extra."""
    required = metadata_of(wheel).get_all("Requires-Dist", [])
    core = [line for line in required if "extra ==" not in line]
    assert [line.split(">")[0] for line in core] == ["torch"]
    for extra in ("triton", "dev"):
        assert any(line.startswith("triton") and f'"{extra}"' in line for line in required), extra


def test_the_index_page_links_to_the_repository(wheel: Path) -> None:
    """Every link of the README there is a whole address, and one place says whose it is."""
    page = metadata_of(wheel)
    (url,) = (line.split(", ")[1] for line in page.get_all("Project-URL", []))
    assert page["Author"] and page["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)]+)\)", str(page.get_payload()))
    assert any(link == f"{url}/blob/main/docs/xglue.md" for link in links)
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_citation_is_of_this_version() -> None:
    """CITATION.cff and the package say the same version and licence."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {graddrop.__version__}\n" in citation
    assert "\nlicense: Apache-2.0\n" in citation and "2307.10098" in citation


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")
def test_wheel_carries_a_kernel_that_loads_without_torch(from_wheel: Installation) -> None:
    """The compiled kernel is a plain library: it depends neither on Python nor on torch."""
    library = from_wheel.home / LIBRARY
    ctypes.CDLL(str(library))
    unwanted = re.compile(r"libtorch|libpython|libc10|libgomp")
    assert not unwanted.search(run("ldd", library, cwd=from_wheel.home))
    torch_itself = Path(torch.__file__).parent / "lib" / "libtorch_python.so"
    assert unwanted.search(run("ldd", torch_itself, cwd=from_wheel.home))  # negative control


TWO_OPTIMIZERS = """
import torch, warnings
from graddrop import FusedGradDropAdamW
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        param = torch.ones(1025, requires_grad=True)
        param.grad = torch.ones_like(param)
        FusedGradDropAdamW([param], drop_prob=0.5).step()
        assert 0 < int((param != 1).sum()) <= 1025
print([str(warning.message) for warning in said])
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")
def test_without_a_compiler_steps_are_slow_and_say_so_once(
    without_compiler: Installation, from_wheel: Installation, tmp_path: Path
) -> None:
    """The package installs and steps without the compiled kernel; with it nothing is said."""
    assert not (without_compiler.home / LIBRARY).exists()
    (warning,) = ast.literal_eval(without_compiler.run(TWO_OPTIMIZERS, cwd=tmp_path))
    assert "CPU kernel" in warning
    assert from_wheel.run(TWO_OPTIMIZERS, cwd=tmp_path).strip() == "[]"


def test_command_line_starts(from_wheel: Installation, tmp_path: Path) -> None:
    """The console script is installed and knows its own help."""
    assert "finetune" in run(from_wheel.python.parent / "graddrop", "--help", cwd=tmp_path)


def test_pytest_at_the_root_finds_the_checkout(bare_python: Path, checkout: Path) -> None:
    """`python -m pytest` works in a checkout that is not installed."""
    law = checkout / "tests" / "test_only_here.py"
    law.write_text(
        f"import graddrop.kernels.abi as a\ndef test(): assert {str(checkout)!r} in a.__file__"
    )
    assert "1 passed" in run(bare_python, "-m", "pytest", "-q", law, cwd=checkout)


@pytest.mark.parametrize("name, found", [("abi", True), ("absent", False)])
def test_type_checker_sees_the_kernels(
    from_wheel: Installation, tmp_path: Path, name: str, found: bool
) -> None:
    """mypy resolves `graddrop.kernels` of an installation, and would notice its absence."""
    command = (sys.executable, "-m", "mypy", "--python-executable", from_wheel.python)
    code = f"from graddrop.kernels.{name} import PARAM"
    options = ("--follow-imports=skip", "--cache-dir", tmp_path, "-c", code)
    if found:
        run(*command, *options, cwd=tmp_path)
    else:
        with pytest.raises(AssertionError, match="import-not-found"):
            run(*command, *options, cwd=tmp_path)


LOAD_A_MODEL = """
import sys, tempfile
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification as Model
from transformers.utils.import_utils import is_kernels_available
tiny = dict(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
with tempfile.TemporaryDirectory() as folder:
    Model(XLMRobertaConfig(**tiny, intermediate_size=8)).save_pretrained(folder)
    Model.from_pretrained(folder)
print(is_kernels_available(), getattr(sys.modules.get("kernels"), "__file__", None))
"""

STAND_IN = """
def _decorator(*args, **kwargs):
    return lambda wrapped: wrapped

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _decorator
"""


@pytest.fixture(scope="module")
def hugging_face_kernels(workshop: Path) -> Path:
    """A folder with a distribution that transformers takes for Hugging Face's `kernels`."""
    pytest.importorskip("transformers", reason="loading a model needs transformers")
    from transformers.utils.import_utils import KERNELS_MIN_VERSION as VERSION

    folder = workshop / "hugging_face"
    info = folder / f"{IMPORT_NAME}-{VERSION}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {IMPORT_NAME}\nVersion: {VERSION}\n"
    (info / "METADATA").write_text(metadata)
    (folder / IMPORT_NAME).mkdir()
    (folder / IMPORT_NAME / "__init__.py").write_text(STAND_IN)
    return folder


def test_models_load_at_the_root_whether_or_not_their_kernels_are_installed(
    checkout: Path, hugging_face_kernels: Path, bare_python: Path
) -> None:
    """Our folder of that name, first on the path, is taken for no package of that name.

    Negative control: with an `__init__.py` in it, loading a model breaks.
    """
    installed = importlib.util.find_spec(IMPORT_NAME)
    there = installed is not None and installed.origin is not None
    printed = run(bare_python, "-c", LOAD_A_MODEL, cwd=checkout)
    assert there or printed.split() == ["False", "None"]

    stand_in = hugging_face_kernels / IMPORT_NAME / "__init__.py"
    on_path = {"PYTHONPATH": str(hugging_face_kernels)}
    printed = run(bare_python, "-c", LOAD_A_MODEL, cwd=checkout, **on_path)
    assert printed.split() == ["True", str(stand_in)]

    marker = checkout / "kernels" / "__init__.py"
    marker.touch()
    try:
        with pytest.raises(AssertionError, match="ImportError"):
            run(bare_python, "-c", LOAD_A_MODEL, cwd=checkout, **on_path)
    finally:
        marker.unlink()
