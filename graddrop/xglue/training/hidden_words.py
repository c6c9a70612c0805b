"""The model that is pretrained: XLM-R that guesses hidden words."""

from typing import TYPE_CHECKING, Any

from graddrop.xglue.heads.model import tiny_config
from graddrop.xglue.training.pretrain_config import HEAD_SIZE, PretrainConfig

if TYPE_CHECKING:
    from transformers import XLMRobertaForMaskedLM


def hidden_words_model(config: PretrainConfig, vocab_size: int) -> "XLMRobertaForMaskedLM":
    """Return XLM-R whose vocabulary is scored only where a word is hidden.

    Elsewhere there is no loss; in a narrow model those scores are half of all arithmetic.
    """
    from torch.nn.functional import cross_entropy
    from transformers import XLMRobertaForMaskedLM
    from transformers.modeling_outputs import MaskedLMOutput

    class HiddenWordsModel(XLMRobertaForMaskedLM):
        def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> MaskedLMOutput:
            hidden = labels != -100
            states = self.roberta(input_ids, attention_mask).last_hidden_state
            total = cross_entropy(self.lm_head(states[hidden]), labels[hidden], reduction="sum")
            # A batch of short lines may by chance hide nothing.
            return MaskedLMOutput(loss=total / hidden.sum().clamp(min=1))

    architecture = tiny_config(vocab_size)
    architecture.update(
        {
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.hidden_size // HEAD_SIZE,
            "intermediate_size": 4 * config.hidden_size,
            # A model that sees each line a few times has nothing to memorise.
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    )
    return HiddenWordsModel(architecture)
