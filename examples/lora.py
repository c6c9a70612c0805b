"""LoRA with PEFT: the adapters are masked, layer by layer, the new head is not.

python examples/lora.py    (pip install peft)
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from graddrop import FusedGradDropAdamW
from graddrop.exemptions import head_of


def main() -> FusedGradDropAdamW:
    """Train the adapters of a small BERT of random weights for some steps."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
    )
    model = get_peft_model(
        BertForSequenceClassification(config),
        LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]),
    )
    head = head_of(model)
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    optimizer = FusedGradDropAdamW(
        [
            {"params": [pair for pair in trained if pair[0] not in head]},
            {"params": [pair for pair in trained if pair[0] in head], "drop_prob": 0.0},
        ],
        lr=1e-3,
        drop_prob=0.5,
        granularity="layer",
    )
    inputs = torch.randint(100, (16, 8))
    labels = torch.randint(2, (16,))
    for step in range(5):
        dropped = optimizer.dropped_layers()
        optimizer.zero_grad()
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}, dropped the adapters of layers {dropped}")
    return optimizer


if __name__ == "__main__":
    main()
