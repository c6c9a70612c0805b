"""How much a training set is padded: positions computed per sub-word, for real data.

    python -m bench.padding MODEL DATA

Of batches drawn at random, and of the harness's own, whose examples are of like length. Nothing is
timed; of MODEL the tokenizer alone is read.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.data.sources import open_source
from graddrop.xglue.heads.model import load_tokenizer
from graddrop.xglue.training.order import order_of_epoch
from graddrop.xglue.training.run_data import RunData

TASKS = ("ner", "pos", "mlqa", "xnli", "paws-x")
BATCH_SIZES = (16, 32)
SEED = 0


def lengths_of(task: str, model: str, data: str) -> list[int]:
    """Sub-words of each training input of a task, as its recipe cuts them.

    Args:
        task: name of the task.
        model: folder of a tokenizer, or its name.
        data: as ``graddrop finetune --data`` takes it.
    """
    evaluate = ("en-dev",)  # no other file is read beside the training set
    config = FinetuneConfig(task=task, data=data, output="unused", evaluate=evaluate).resolved()
    tokenizer = load_tokenizer(model, [])
    features = RunData(config, open_source(data)).train_features(tokenizer)
    return [len(ids) for ids in features["input_ids"]]


def padding(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> float:
    """Positions computed per sub-word read, where each batch is as long as its longest input.

    Args:
        lengths: of the inputs.
        order: in which they are read.
        batch_size: inputs of a batch.
    """
    read = [lengths[index] for index in order]
    batches = [read[at : at + batch_size] for at in range(0, len(read), batch_size)]
    return sum(max(batch) * len(batch) for batch in batches) / sum(read)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder with a tokenizer, or its name on the Hub")
    parser.add_argument("data", help="XGLUE, as `graddrop finetune --data` takes it")
    parser.add_argument("--task", action="append", choices=TASKS, help="only this; repeatable")
    args = parser.parse_args(argv)
    print("| task | inputs | batch size | batches at random | batches of like length |")
    print("|---|--:|--:|--:|--:|")
    for task in args.task or TASKS:
        lengths = lengths_of(task, args.model, args.data)
        at_random = np.random.default_rng(SEED).permutation(len(lengths)).tolist()
        for size in BATCH_SIZES:
            ours = list(order_of_epoch(lengths, size, SEED, epoch=0))
            print(
                f"| {task} | {len(lengths):,} | {size} | {padding(lengths, at_random, size):.2f} "
                f"| {padding(lengths, ours, size):.2f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
