"""The Trainer of transformers: whole layers are dropped, the head never, and nothing is wasted.

python examples/trainer.py
"""

import tempfile
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import graddrop
from graddrop.trainer import SkipDroppedMixin


class LayerTrainer(SkipDroppedMixin, Trainer):
    """Leaves out the backward pass of layers that the next step drops: the same training."""


def main(folder: str) -> list[dict[str, Any]]:
    """Fine-tune a small BERT of random weights; return what was logged.

    Args:
        folder: for whatever the Trainer writes.
    """
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=100,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=64,
        )
    )
    data = [{"input_ids": [2, 10 + i % 50, 3], "labels": i % 2} for i in range(64)]
    args = TrainingArguments(
        folder,
        learning_rate=1e-3,
        num_train_epochs=2,
        logging_steps=4,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    masks = graddrop.trainer_kwargs(
        model, args, drop_prob=0.5, granularity="layer", exempt=["head"], masked_norm=True
    )
    trainer = LayerTrainer(model=model, args=args, train_dataset=data, **masks)
    trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
