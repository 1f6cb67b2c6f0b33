#!/usr/bin/env bash
# transformers==5.23.0 (BlipForQuestionAnswering, training)
# Answers of a batch cannot be padded so that their padding is left out of the loss, as -100 does in every other model.
# The labels are also what the decoder reads, so -100 is looked up as a token and raises IndexError; and with the
# padding's own id, [PAD] is learnt like any word. Giving `decoder_input_ids` apart from the labels is the way out.
#
# Seen, random weights, an answer of 4 tokens alone, padded by 3 with [PAD], and by 3 with -100 in labels alone:
#   alone 5.70   [PAD] 5.38   -100 IndexError   -100, and decoder_input_ids with [PAD] 5.70
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet torch==2.13.0 transformers==5.23.0

venv/bin/python - <<'PYTHON'
import sys

import torch
from transformers import BlipConfig, BlipForQuestionAnswering

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 16}
text = {"vocab_size": 60, "encoder_hidden_size": 32, "bos_token_id": 50, "eos_token_id": 2, "sep_token_id": 2}
model = BlipForQuestionAnswering(
    BlipConfig(
        text_config={**sizes, **text, "pad_token_id": 0, "max_position_embeddings": 64},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
).eval()
for weight in model.parameters():
    if weight.dim() > 1:
        torch.nn.init.normal_(weight, std=0.2)
asked = {"input_ids": torch.tensor([[1, 7, 8, 9, 2]]), "pixel_values": torch.randn(1, 3, 32, 32)}
answer, padding = torch.tensor([[50, 11, 12, 2]]), torch.zeros(1, 3, dtype=torch.long)
padded = torch.cat([answer, padding], dim=1)
ignored = torch.cat([answer, padding - 100], dim=1)


def loss(**labels: torch.Tensor) -> float:
    with torch.no_grad():
        return model(**asked, **labels).loss.item()


alone, with_padding = loss(labels=answer), loss(labels=padded)
try:
    refused = f"{loss(labels=ignored):.2f}"
except IndexError as error:
    refused = type(error).__name__
apart = loss(labels=ignored, decoder_input_ids=padded)
print(f"alone {alone:.2f}   [PAD] {with_padding:.2f}   -100 {refused}   -100, and decoder_input_ids with [PAD] {apart:.2f}")
if refused != "IndexError" or abs(with_padding - alone) < 0.05 or abs(apart - alone) > 1e-4:
    sys.exit("the behaviour has changed")
PYTHON
