"""A sweep whose batches are drawn at random, whatever the length of their sentences.

    python docs/evidence/plain_order.py docs/evidence/order-pos.toml --scores FILE --workers 2

The harness batches sentences of like length, which pads less; this one does not.
"""

import sys

from graddrop.cli import main
from graddrop.xglue.training import order

# One batch at a time is sorted, which changes no batch. The sweep's processes read this file, too.
order.POOL = 1

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
