#!/usr/bin/env bash
# transformers==5.23.0 (BlipForConditionalGeneration.generate)
# In a batch of prompts of different lengths, the shorter ones begin differently than alone. `generate` drops the last
# column of the ids, which is [SEP] for a prompt alone. In a padded batch that column is padding, so a shorter prompt
# keeps its [SEP] and is read as a finished sentence. With padding on the left, the start token is written over a padding
# that the mask hides. It is also written into the caller's own tensor.
#
# Seen, random weights, the prompt [CLS] 7 8 [SEP] = 1 7 8 2 beside one of six tokens; ids that generate begins with:
#   alone: 50 7 8   padded on the right: 50 7 8 2 0   padded on the left: 50 0 1 7 8
#   the caller's ids before: 1 7 8 2   after: 50 7 8 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet torch==2.13.0 transformers==5.23.0

venv/bin/python - <<'PYTHON'
import sys

import torch
import transformers
from transformers import BlipConfig, BlipForConditionalGeneration

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 16}
text = {"vocab_size": 60, "encoder_hidden_size": 32, "bos_token_id": 50, "eos_token_id": 2, "sep_token_id": 2}
model = BlipForConditionalGeneration(
    BlipConfig(
        text_config={**sizes, **text, "pad_token_id": 0, "max_position_embeddings": 64},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
).eval()
images = torch.randn(2, 3, 32, 32)
short, long = [1, 7, 8, 2], [1, 7, 8, 9, 10, 2]


def begun(*prompts: list[int], left: bool = False) -> list[int]:
    """The ids of the first prompt that the decoder is given."""
    width = max(map(len, prompts))
    rows = [[0] * (width - len(ids)) + ids if left else ids + [0] * (width - len(ids)) for ids in prompts]
    ids = torch.tensor(rows)
    mask = (ids != 0).long()
    written = model.generate(
        pixel_values=images[: len(rows)], input_ids=ids, attention_mask=mask, max_new_tokens=1, min_new_tokens=1
    )
    return written[0, : width - 1].tolist()


alone, right, beside = begun(short), begun(short, long), begun(short, long, left=True)
mine = torch.tensor([short])
model.generate(pixel_values=images[:1], input_ids=mine, max_new_tokens=1)
for name, ids in (("alone", alone), ("right", right), ("left", beside), ("the caller's ids", mine[0].tolist())):
    print(f"{name}:", *ids)
if (alone, right, beside, mine[0].tolist()) != ([50, 7, 8], [50, 7, 8, 2, 0], [50, 0, 1, 7, 8], [50, 7, 8, 2]):
    sys.exit("the behaviour has changed")
PYTHON
