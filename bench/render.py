"""Tables and a plot of a benchmark record.

python -m bench.render RECORD.json            prints the tables, and draws RECORD.png
python -m bench.render RECORD.json README.md  also writes the README's table anew
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from bench.peers import PEERS

Record = dict[str, Any]  # as pytest-benchmark writes it, see bench/conftest.py
COLUMNS = (
    "step",
    "median ms",
    "quartiles",
    "/ torch fused",
    "quartiles",
    "GB/s",
    "of in-place pass",
    "/ torch fused at its speed",
    "state, bytes per entry",
    "temporary",
    "host µs",
)
GPU_COLUMNS = (*COLUMNS, "launches", "device ms")
SUMMARY_PEERS = ("fused", "graddrop", "graddrop-exempt", "eager-rand", "eager-dropout")
SUMMARY = re.compile(r"(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)", re.DOTALL)


def render(record: Record) -> str:
    """The record as Markdown: where it was measured, then a table per workload."""
    lines = [_origin(record)]
    for workload, rows in _by_workload(record).items():
        info = rows[0]["extra_info"]
        n_tensors, n_millions = info["n_tensors"], info["n_elements"] / 1e6
        columns = GPU_COLUMNS if "launches" in info else COLUMNS
        lines += ["", f"**{workload}**: tensors {n_tensors:,}, elements {n_millions:.1f} M"]
        lines += ["", _line(*columns), "|---|" + "--:|" * (len(columns) - 1)]
        lines += [_row(row) for row in rows]
        lines += [
            _line(row["peer"], f"not measured: {row['reason']}", *[""] * (len(columns) - 2))
            for row in record["not_measured"]
            if row["workload"] == workload
        ]
    measured = _by_workload(record)
    for workload in dict.fromkeys(row["workload"] for row in record["not_measured"]):
        if workload not in measured:
            lines += ["", f"**{workload}**: not measured"]
    return "\n".join(lines) + "\n"


def summary(record: Record) -> str:
    """The README's table: time over torch's fused AdamW, milliseconds; a column per workload."""
    by_workload = _by_workload(record)
    lines = [
        _line("optimizer step, fp32, over torch's (ms)", *by_workload),
        "|---|" + "--:|" * len(by_workload),
    ]
    for key in SUMMARY_PEERS:
        cells = [PEERS[key].name]
        for rows in by_workload.values():
            found = [row for row in rows if row["extra_info"]["peer_key"] == key]
            cells.append(_ratio(found[0]) if found else "")
        if key == "graddrop":
            cells = [f"**{cell}**" for cell in cells]
        lines.append(_line(*cells))
    return "\n".join(lines) + "\n"


def draw(record: Record, path: Path) -> None:
    """Draw time over torch's fused AdamW, a dot per peer with its quartiles, a panel per workload.

    Args:
        record: with the rows of every panel.
        path: file to write; its suffix chooses the format.
    """
    from matplotlib.figure import Figure

    by_workload = _by_workload(record)
    names = [peer.name.replace("`", "") for peer in PEERS.values()]
    keys = list(PEERS)
    figure = Figure(figsize=(4 + 3 * len(by_workload), 1 + 0.26 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(by_workload), sharey=True, squeeze=False)[0]
    for axes, (workload, rows) in zip(panels, by_workload.items(), strict=True):
        for row in rows:
            info = row["extra_info"]
            ratio = info["ratio_to_baseline"]
            height = keys.index(info["peer_key"])
            ours = info["peer"].startswith(("GradDrop", "bf16: GradDrop"))
            color = "#D55E00" if ours else "#0072B2"
            marker = "D" if ours else "o"
            axes.plot(ratio["quartiles"], [height, height], color=color, linewidth=2, alpha=0.5)
            axes.plot(ratio["median"], height, marker, color=color, markersize=5)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_title(workload, fontsize=9)
        axes.set_xlabel("time / torch fused AdamW, no mask", fontsize=8)
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.tick_params(labelsize=8)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=150)


def _by_workload(record: Record) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for row in record["benchmarks"]:
        found.setdefault(row["extra_info"]["workload"], []).append(row)
    return found


def _origin(record: Record) -> str:
    info = record["benchmarks"][0]["extra_info"]
    machine, commit = record["machine_info"], record["commit_info"]
    loads = [row["extra_info"]["load_average"] for row in record["benchmarks"]]
    packages = {row["extra_info"]["package"] for row in record["benchmarks"]} - {None}
    facts = (
        info["device_name"] or machine["cpu"]["brand_raw"],
        f"{info['n_threads']} threads",
        f"{machine['system']} {machine['machine']}",
        f"Python {machine['python_version']}",
        f"torch {info['torch']}",
        *sorted(packages),
        f"commit {commit['id'][:10]}" + (" with changes" if commit["dirty"] else ""),
        f"{record['datetime'][:16]} UTC",
        f"load average {min(loads):.1f} to {max(loads):.1f}",
    )
    return (
        ", ".join(facts) + '.\n"/ torch fused" is taken within rounds, to '
        f'"{PEERS["fused"].name}" on fp32 parameters of the same shapes just before.\n'
        "GB/s counts the bytes of `bench/bytes_model.py`; an in-place pass over a large tensor "
        "is timed in each round.\nAt its speed: what the ratio would be if the step moved bytes "
        "as fast as that pass.\nState: memory that the first step took and kept; temporary: the "
        "most that a later one takes on top, where it was counted.\nHost: until a GPU's step "
        "returns; on a CPU, a step of as many tensors of 4 entries; gradients have moved, as after "
        "`zero_grad()`.\nDevice: a GPU's kernels, without what lies between "
        "them."
    )


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _row(row: Record) -> str:
    info, stats = row["extra_info"], row["stats"]
    ratio = info["ratio_to_baseline"]
    cells = [
        info["peer"],
        _milliseconds(stats["median"]),
        f"{_milliseconds(stats['q1'])} to {_milliseconds(stats['q3'])}",
        f"{ratio['median']:.2f}",
        "{:.2f} to {:.2f}".format(*ratio["quartiles"]),
    ]
    if info["bytes_per_element"] is None:
        cells += ["", "", ""]
    else:
        speed = info["bytes_per_element"] * info["n_elements"] / stats["median"]
        share = speed / info["pass_bytes_per_second"]
        cells += [f"{speed / 1e9:,.1f}", f"{share:.0%}", f"{ratio['median'] * share:.2f}"]
    for key in ("state_bytes", "temporary_bytes"):
        cells.append("" if info[key] is None else f"{info[key] / info['n_elements']:.1f}")
    host = info["host_seconds"]
    cells.append("" if host is None else f"{1e6 * host:,.0f}")
    if "launches" in info:
        cells += [str(info["launches"]), _milliseconds(info["device_seconds"])]
    return _line(*cells)


def _ratio(row: Record) -> str:
    ratio, seconds = row["extra_info"]["ratio_to_baseline"]["median"], row["stats"]["median"]
    return f"{ratio:.2f} ({_milliseconds(seconds)})"


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def main(record_path: str, readme_path: str | None = None) -> None:
    """Print, draw, and write what the arguments ask for.

    Raises:
        ValueError: if no row of the record was measured, or the README has no place for the table.
    """
    path = Path(record_path)
    record = json.loads(path.read_text(encoding="utf-8"))
    if not record["benchmarks"]:
        raise ValueError(f"{path}: expected a row that was measured, got none")
    print(render(record), end="")
    draw(record, path.with_suffix(".png"))
    if readme_path is not None:
        readme = Path(readme_path)
        text, count = SUMMARY.subn(lambda _: summary(record), readme.read_text(encoding="utf-8"))
        if count != 1:
            raise ValueError(f"{readme}: expected one <!-- bench --> ... <!-- /bench -->")
        readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
