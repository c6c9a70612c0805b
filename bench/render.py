"""The table of a benchmark record: `python -m bench.render RECORD.json` prints Markdown."""

import json
import sys
from pathlib import Path
from typing import Any

from bench.peers import PEERS

Record = dict[str, Any]  # as pytest-benchmark writes it
HEADER = "| step | median ms | quartiles | / torch fused | quartiles | GB/s | of in-place pass |"


def render(record: Record) -> str:
    """The record as Markdown: where it was measured, then a table per workload."""
    lines = [_origin(record)]
    by_workload: dict[str, list[Record]] = {}
    for row in record["benchmarks"]:
        by_workload.setdefault(row["extra_info"]["workload"], []).append(row)
    for workload, rows in by_workload.items():
        info = rows[0]["extra_info"]
        n_tensors, n_millions = info["n_tensors"], info["n_elements"] / 1e6
        lines += ["", f"**{workload}**: tensors {n_tensors:,}, elements {n_millions:.1f} M, fp32"]
        lines += ["", HEADER, "|---|--:|--:|--:|--:|--:|--:|"]
        lines += [_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def _origin(record: Record) -> str:
    info = record["benchmarks"][0]["extra_info"]
    machine, commit = record["machine_info"], record["commit_info"]
    loads = [row["extra_info"]["load_average"] for row in record["benchmarks"]]
    facts = (
        info["device_name"] or machine["cpu"]["brand_raw"],
        f"{info['n_threads']} threads",
        f"{machine['system']} {machine['machine']}",
        f"Python {machine['python_version']}",
        f"torch {info['torch']}",
        f"commit {commit['id'][:10]}" + (" with changes" if commit["dirty"] else ""),
        f"{record['datetime'][:16]} UTC",
        f"load average {min(loads):.1f} to {max(loads):.1f}",
    )
    return (
        ", ".join(facts) + '.\n"/ torch fused" is taken within rounds, to '
        f'"{PEERS["fused"].name}" on the same parameters just before.\n'
        "GB/s counts the bytes of `bench/bytes_model.py`."
    )


def _row(row: Record) -> str:
    info, stats = row["extra_info"], row["stats"]
    ratio = info["ratio_to_baseline"]
    cells = [
        info["peer"],
        f"{1e3 * stats['median']:.1f}",
        f"{1e3 * stats['q1']:.1f} to {1e3 * stats['q3']:.1f}",
        f"{ratio['median']:.2f}",
        "{:.2f} to {:.2f}".format(*ratio["quartiles"]),
    ]
    if info["bytes_per_element"] is None:
        cells += ["", ""]
    else:
        speed = info["bytes_per_element"] * info["n_elements"] / stats["median"]
        cells += [f"{speed / 1e9:.1f}", f"{speed / info['pass_bytes_per_second']:.0%}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    print(render(json.loads(Path(sys.argv[1]).read_text())), end="")
