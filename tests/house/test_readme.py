"""The README keeps its word."""

import re
import tomllib

from helpers.root import ROOT

README = ROOT / "README.md"


def test_the_first_example_runs_as_it_stands():
    """Ten lines, copied as they are, train: the loss falls."""
    example = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for line in example.group(1).splitlines() if line.strip()]
    assert len(lines) <= 11
    losses: list[float] = []
    code = example.group(1).replace(
        "loss.backward()", "loss.backward(); losses.append(loss.item())"
    )
    exec(compile(code, str(README), "exec"), {"losses": losses, "__name__": "readme"})
    assert len(losses) == 20
    assert losses[-1] < losses[0]


PIP_LINES = re.compile(r"pip install [^`\n]*")


def installs(text):
    """Arguments of each ``pip install`` of a text, up to a comment or the end of its quotes."""
    return [
        re.split(r"\s+#|`|[\"']?,? *$|\)", line)[0].removeprefix("pip install ").strip()
        for line in PIP_LINES.findall(text)
    ]


def wrong_installs(text):
    """Those that name us as an index would: no index has us. A checkout is ".", with extras.

    Quoted, since to some shells brackets are a pattern.
    """
    return [line for line in installs(text) if re.search(r"\bgraddrop\b|(?<!\")\.\[", line)]


def test_every_pip_line_can_work():
    """Documents and messages install a checkout, by extras that there are, or others' packages."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(extras["optional-dependencies"])
    patterns = ["*.md", "*.txt", "*.toml", "*.py", "Makefile", "docs/**/*.md", "docs/**/*.toml"]
    patterns += [f"{folder}/**/*.py" for folder in ("graddrop", "kernels", "examples", "bench")]
    files = [path for pattern in patterns for path in ROOT.glob(pattern)]
    assert {"CHANGELOG.md", "constraints.txt", "lora.py"} <= {path.name for path in files}
    lines = {path: installs(path.read_text(encoding="utf-8")) for path in files}
    assert sum(map(len, lines.values())) >= 5
    for path, found in lines.items():
        assert wrong_installs(path.read_text(encoding="utf-8")) == [], path
        for line in found:
            for names in re.findall(r"\.\[([\w,-]*)\]", line):
                assert set(names.split(",")) <= known, (path, line)
    assert wrong_installs('pip install "graddrop[xglue]"')  # negative controls
    assert wrong_installs('pip install "graddrop[xglue] @ ."')
    assert wrong_installs("pip install .[xglue]")
