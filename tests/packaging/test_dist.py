"""What `make dist` leaves in dist/: one sdist, and wheels whose tags keep their word.

The wheel of this machine is installed and trains. Of the other one's is checked what this machine
can: its processor, the versions of symbols, and, under emulation, that its kernel loads.
"""

import re
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.emulation import COMPILER, EMULATOR, require
from helpers.environments import install, make_environment, run
from helpers.root import ROOT

import graddrop

pytestmark = pytest.mark.slow

LIBRARY = "graddrop/kernels/cpu/graddrop_cpu.so"
MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}  # as readelf has them
READER = {"x86_64": "", "aarch64": "aarch64-linux-gnu-"}  # whose binutils read the machine's files


def made(pattern: str) -> Path:
    """The file in dist/ of this version; skips where there is none."""
    found = sorted((ROOT / "dist").glob(f"graddrop-{graddrop.__version__}{pattern}"))
    if not found:
        pytest.skip(f"no {pattern} in dist/: make dist makes it")
    (file,) = found
    return file


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    """Each processor that has a wheel."""
    return request.param


@pytest.fixture
def library(machine: str, tmp_path: Path) -> Path:
    """The kernel in the wheel of a processor."""
    wheel = made(f"-py3-none-manylinux_*_{machine}.whl")
    return Path(zipfile.ZipFile(wheel).extract(LIBRARY, tmp_path))


def test_the_kernel_is_of_the_tags_processor(machine: str, library: Path) -> None:
    """And names no folder of the machine that linked it."""
    header = run("readelf", "-h", "-d", library, cwd=library.parent)
    assert f"Machine:                           {MACHINES[machine]}\n" in header
    assert "PATH" not in header


def test_symbols_are_as_old_as_the_tag_says(machine: str, library: Path) -> None:
    """No symbol of a C library that is newer than the tag's."""
    tag = re.search(r"manylinux_(\d+)_(\d+)_", made(f"-py3-none-manylinux_*_{machine}.whl").name)
    assert tag is not None
    symbols = run(f"{READER[machine]}objdump", "-T", library, cwd=library.parent)
    versions = {tuple(map(int, v)) for v in re.findall(r"GLIBC_(\d+)\.(\d+)", symbols)}
    assert max(versions) <= (int(tag[1]), int(tag[2]))
    assert (int(tag[1]), int(tag[2])) <= (2, 31)  # that of Debian 11, which torch's also run on


SMOKE = """
import sys, warnings
warnings.simplefilter("error")
from graddrop.kernels.cpu import binding
binding.load()
exec(sys.argv[1])
assert loss < 0.7
print(optimizer.keep_mask(model[2].bias).tolist(), int(optimizer.keep_mask(model[0].weight).sum()))
"""


@pytest.mark.parametrize("pattern", ["-py3-none-manylinux_*_x86_64.whl", ".tar.gz"])
def test_it_installs_and_trains(
    pattern: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In an environment that has torch and nothing of ours, the README's ten lines learn.

    The masks are those of this checkout.
    """
    archive = made(pattern)
    python = make_environment(tmp_path / "clean")
    install(python, archive, cwd=tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import torch\n.*?)```", readme, re.DOTALL)
    there = run(python, "-c", SMOKE, example, cwd=tmp_path)  # the loss, then the masks
    monkeypatch.setattr(sys, "argv", ["here", example])
    exec(SMOKE, {})
    here = capsys.readouterr().out
    assert there.splitlines()[-1] == here.splitlines()[-1] != ""


LOADER = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
    for (int i = 2; i < argc; ++i)
        if (!dlsym(library, argv[i])) return fprintf(stderr, "%s\n", dlerror()), 2;
    return puts("loaded"), 0;
}
"""


def test_the_other_machines_kernel_loads(tmp_path: Path) -> None:
    """Every symbol resolves under emulation, and what ours exports is there."""
    compiler = COMPILER.replace("g++", "gcc")
    require(COMPILER, EMULATOR)
    wheels = {name: made(f"-py3-none-manylinux_*_{name}.whl") for name in MACHINES}
    libraries = {
        name: Path(zipfile.ZipFile(wheel).extract(LIBRARY, tmp_path / name))
        for name, wheel in wheels.items()
    }
    defined = run("nm", "-D", "--defined-only", libraries["x86_64"], cwd=tmp_path)
    exported = re.findall(r" T (\w+)", defined)
    assert len(exported) > 2
    (tmp_path / "loader.c").write_text(LOADER)
    run(compiler, "loader.c", "-o", "loader", cwd=tmp_path)
    load = (EMULATOR, "-L", "/usr/aarch64-linux-gnu", "./loader")
    assert run(*load, libraries["aarch64"], *exported, cwd=tmp_path) == "loaded\n"
    with pytest.raises(AssertionError, match="undefined symbol: absent"):
        run(*load, libraries["aarch64"], "absent", cwd=tmp_path)
    with pytest.raises(AssertionError):
        run(*load, libraries["x86_64"], cwd=tmp_path)
