"""The command `graddrop pretrain`."""

import argparse
import dataclasses

from graddrop.xglue.training.pretrain import HEAD_SIZE, PretrainConfig, pretrain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--text", required=True, help="folder with one <language>.txt each")
    parser.add_argument("--output", required=True, help="model folder to make")
    parser.add_argument("--vocab-size", type=int, help="most sub-words of the tokenizer")
    parser.add_argument("--hidden-size", type=int, help=f"a multiple of {HEAD_SIZE}")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--max-length", type=int, help="sub-words per line")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--batch-size", type=int, help="lines per optimizer step")
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--mask-prob", type=float, help="share of the sub-words to be guessed")
    parser.add_argument("--smoothing", type=float, help="exponent for sampling small languages")
    parser.add_argument("--seed", type=int)


def run(args: argparse.Namespace) -> int:
    """Pretrain and say where the model is."""
    names = [field.name for field in dataclasses.fields(PretrainConfig)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    result = pretrain(PretrainConfig(**given))
    print(
        f"{result['parameters']:,} parameters, {result['steps']} steps, "
        f"{result['seconds']:.0f} s; written to {args.output}"
    )
    return 0
