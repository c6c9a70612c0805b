"""What is installed: the package list and the compiled CPU kernel.

Everything that can be said as data is in `pyproject.toml`; here stands what needs a reason or code.
"""

import re
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# By hand, since a search would also find the top-level folders kernels, tests and bench; installed,
# `kernels` would shadow another project's package of that name. `graddrop/kernels` is a symbolic
# link to `../kernels`; builds follow it and carry ordinary files.
PACKAGES = [
    "graddrop",
    "graddrop.kernels",
    "graddrop.kernels.cpu",
    "graddrop.kernels.gpu",
    "graddrop.state",
    "graddrop.step",
    "graddrop.step.executors",
    "graddrop.xglue",
    "graddrop.xglue.commands",
    "graddrop.xglue.data",
    "graddrop.xglue.heads",
    "graddrop.xglue.mini",
    "graddrop.xglue.report",
    "graddrop.xglue.report.pictures",
    "graddrop.xglue.report.sections",
    "graddrop.xglue.scores",
    "graddrop.xglue.sweep",
    "graddrop.xglue.training",
]

# For compilers that take GCC's options. No -march: one binary serves every machine, and the source
# itself picks the instruction set when it runs. No -ffast-math: results are compared bit for bit.
COMPILE_FLAGS = [
    "-std=c++17",
    "-O3",  # GCC 11 and older vectorise loops only here
    "-g0",  # Python's own flags may ask for debug information, ten times the size
    "-fno-math-errno",  # sqrt becomes one instruction; nobody reads errno
    "-fno-trapping-math",  # selects become blends; nobody reads the exception flags
    "-ffp-contract=off",  # the source says where products and sums fuse
    "-fvisibility=hidden",  # only the C interface is exported
    "-Wno-uninitialized",  # GCC 12 warns of its own vector headers
]

CPU_KERNEL = Extension(
    "graddrop.kernels.cpu.graddrop_cpu",
    sources=["graddrop/kernels/cpu/graddrop_cpu.cpp"],
    depends=[str(header) for header in Path("graddrop/kernels/cpu").glob("*.h")],
    language="c++",
    extra_compile_args=COMPILE_FLAGS,
    extra_link_args=["-pthread"],
    optional=True,  # without a compiler the package installs and runs its reference
)


class BuildSharedLibrary(build_ext):
    """Compile a plain shared library, which ctypes loads, instead of a Python module."""

    def get_ext_filename(self, fullname: str) -> str:
        """Name the file without Python's version: the library does not know Python."""
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Export what the source marks, and no PyInit function, which it does not have."""
        return ext.export_symbols or []


class PlatformWheel(bdist_wheel):
    """Tag the wheel for the platform and for every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag, e.g. `py3-none-linux_x86_64`."""
        return "py3", "none", super().get_tag()[2]


def readme() -> str:
    """Return the README with links that lead to the repository, as an index page needs them."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    files = f"{project['urls']['Repository']}/blob/main"
    text = Path("README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({files}/\1)", text)


setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    packages=PACKAGES,
    package_data={"graddrop": ["py.typed"]},
    # Only what is named: no source file of the compiled kernel in an installation.
    include_package_data=False,
    ext_modules=[CPU_KERNEL],
    cmdclass={"build_ext": BuildSharedLibrary, "bdist_wheel": PlatformWheel},
)
