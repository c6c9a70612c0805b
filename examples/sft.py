"""Supervised fine-tuning with trl: its SFTTrainer is a Trainer, and takes the same keywords.

python examples/sft.py    (pip install trl)
"""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import graddrop
from graddrop.trainer import SkipDroppedMixin


class LayerTrainer(SkipDroppedMixin, SFTTrainer):
    """Leaves out the backward pass of layers that the next step drops: the same training."""


def main(folder: str) -> list[dict[str, Any]]:
    """Fine-tune a small Llama of random weights on sentences; return what was logged.

    Args:
        folder: for whatever the Trainer writes.
    """
    torch.manual_seed(0)
    words = ["<pad>", "<eos>", "a", "cat", "dog", "sees", "the", "moon"]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<eos>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<eos>"
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    texts = [f"the {('cat', 'dog')[i % 2]} sees the moon" for i in range(64)]
    args = SFTConfig(
        folder,
        learning_rate=1e-2,
        num_train_epochs=2,
        logging_steps=4,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
    )
    masks = graddrop.trainer_kwargs(
        model, args, drop_prob=0.5, granularity="layer", exempt=["embeddings"], masked_norm=True
    )
    trainer = LayerTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
        **masks,
    )
    trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
