"""The command `graddrop pretrain`."""

import argparse
import dataclasses

from graddrop.xglue.training.pretrain import pretrain
from graddrop.xglue.training.pretrain_config import PretrainConfig


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
