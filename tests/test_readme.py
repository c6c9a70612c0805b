"""The README keeps its word."""

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


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


def test_what_it_links_to_exists():
    """Every relative link and every path in the first code of a command leads to a file."""
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (README.parent / target).exists(), target
    for script in re.findall(r"`(?:python|pytest)(?: -s)? ([\w/]+\.py)", text):
        assert (README.parent / script).exists(), script
