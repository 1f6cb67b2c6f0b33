#!/usr/bin/env bash
# transformers==5.23.0 (BlipForQuestionAnswering.generate)
# The answer to a question depends on the other questions of the batch. The encoder obeys `attention_mask`, but
# `generate` gives the decoder a mask of ones over the question's states, so the answer attends to those of the padding,
# too. The wider the padding, the more the first logits move.
#
# Seen, random weights, the first logits of a question of 5 tokens alone against those of it padded to 7, 10 and 20:
#   largest difference: 5: 0.0  7: 1.4  10: 1.8  20: 2.7
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


def first_logits(length: int) -> torch.Tensor:
    padding = torch.zeros(1, length - question.shape[1], dtype=torch.long)
    answer = model.generate(
        input_ids=torch.cat([question, padding], dim=1),
        attention_mask=torch.cat([torch.ones_like(question), padding], dim=1),
        pixel_values=image,
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return answer.logits[0]


alone = first_logits(5)
moved = {length: (first_logits(length) - alone).abs().max().item() for length in (5, 7, 10, 20)}
print("largest difference:", "  ".join(f"{length}: {difference:.1f}" for length, difference in moved.items()))
if moved[5] > 1e-5 or min(moved[7], moved[10], moved[20]) < 0.1:
    sys.exit("the behaviour has changed")
PYTHON
