"""The Trainer's arguments for a process that has one device and the precision it was told."""

from transformers import TrainingArguments


class OneDeviceArguments(TrainingArguments):
    """`transformers.TrainingArguments` that mean the same on every machine.

    The orders of the data have a seed of their own, `data_seed`, which follows from `seed`.

    Raises:
        ValueError: If the launcher asks for another precision than the arguments.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_seed is None:
            # accelerate orders an epoch by seed + epoch, so that neighbouring seeds would share
            # orders. Multiplicative hashing (Knuth) takes the seeds far apart: those below 2**16
            # by 10,000 epochs at least.
            self.data_seed = self.seed * 0x9E3779B1 % 2**32
        asked = "bf16" if self.bf16 else "fp16" if self.fp16 else "no"
        if self.mixed_precision != asked:
            raise ValueError(
                f"the launcher asks for mixed precision {self.mixed_precision}, the run for "
                f"{asked}; launch with --mixed_precision {asked}, or unset "
                "ACCELERATE_MIXED_PRECISION"
            )

    @property
    def n_gpu(self) -> int:
        """One at most: several GPUs are used by as many processes, which a launcher starts.

        Of all GPUs that it sees the Trainer would make one `nn.DataParallel` with a batch for each
        of them, so that the same settings would train something else.
        """
        return min(1, super().n_gpu)
