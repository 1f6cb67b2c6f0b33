#!/usr/bin/env bash
# transformers==5.23.0 (BlipForQuestionAnswering: loss and generate)
# The answer to a question, and the loss, depend on the padding behind the question, although `attention_mask` is
# passed. The mask holds inside the question's encoder, but never in the decoder's cross-attention: its layer passes the
# encoder's mask on under the name `attention_mask`, and the attention reads `encoder_attention_mask`, which is None. So
# the decoder attends to the states of the padding; a mask of zeros and ones and no mask give the same loss. `generate`
# does not even pass the mask: it builds one of ones.
#
# Seen, random weights, a question of 5 tokens alone, and padded to 7, 10 and 20:
#   first logits, largest difference: 5: 0.0  7: 1.4  10: 1.8  20: 2.7
#   loss of an answer:                5: 5.70  7: 5.75  10: 5.69  20: 5.60
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
image = torch.randn(1, 3, 32, 32)
question = torch.tensor([[1, 7, 8, 9, 2]])


def padded(length: int) -> dict[str, torch.Tensor]:
    padding = torch.zeros(1, length - question.shape[1], dtype=torch.long)
    return {
        "input_ids": torch.cat([question, padding], dim=1),
        "attention_mask": torch.cat([torch.ones_like(question), padding], dim=1),
        "pixel_values": image,
    }


def first_logits(length: int) -> torch.Tensor:
    answer = model.generate(
        **padded(length), max_new_tokens=1, output_logits=True, return_dict_in_generate=True
    )
    return answer.logits[0]


LENGTHS = (5, 7, 10, 20)
alone = first_logits(5)
moved = {length: (first_logits(length) - alone).abs().max().item() for length in LENGTHS}
answer = torch.tensor([[50, 11, 12, 2]])
with torch.no_grad():
    losses = {length: model(**padded(length), labels=answer).loss.item() for length in LENGTHS}
print("first logits, largest difference:", "  ".join(f"{length}: {each:.1f}" for length, each in moved.items()))
print("loss of an answer:               ", "  ".join(f"{length}: {each:.2f}" for length, each in losses.items()))
if moved[5] > 1e-5 or min(moved[7], moved[10], moved[20]) < 0.1:
    sys.exit("the behaviour of generate has changed")
if max(abs(losses[length] - losses[5]) for length in LENGTHS) < 0.05:
    sys.exit("the behaviour of the loss has changed")
PYTHON
