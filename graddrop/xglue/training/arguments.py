"""The Trainer's arguments for a process that has one device and the precision it was told."""

from transformers import TrainingArguments


class OneDeviceArguments(TrainingArguments):
    """`transformers.TrainingArguments` that mean the same on every machine.

    Raises:
        ValueError: If the launcher asks for another precision than the arguments.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
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
