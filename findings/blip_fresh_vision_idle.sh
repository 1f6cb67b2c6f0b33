#!/usr/bin/env bash
# transformers==5.23.0, torch==2.13.0 (BlipVisionConfig, Blip2VisionConfig, InstructBlipVisionConfig)
# The image encoder of a fresh model, made from a configuration, does nothing: initializer_range of these three is 1e-10, not
# 0.02, so that what the blocks add is lost in the rounding of what they add it to. Its features are those of the patch
# projection alone, whatever the blocks are. Tests with random weights that compare two versions of an encoder (quantized
# and not, with and without attention masks) then find them equal, and training from scratch starts from there.
#
# Seen, |features - features without blocks| / |features|:
#   blip 0.0e+00   blip_2 0.0e+00   instructblip 0.0e+00   with initializer_range=0.02: blip 2.7e-01
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet torch==2.13.0 transformers==5.23.0

venv/bin/python - <<'PYTHON' 2>/dev/null
import sys

import torch
from transformers import Blip2VisionConfig, BlipVisionConfig, InstructBlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel
from transformers.models.instructblip.modeling_instructblip import InstructBlipVisionModel

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32}
KINDS = {
    "blip": (BlipVisionConfig, BlipVisionModel),
    "blip_2": (Blip2VisionConfig, Blip2VisionModel),
    "instructblip": (InstructBlipVisionConfig, InstructBlipVisionModel),
}


def share_of_blocks(config, kind):
    torch.manual_seed(0)
    model = kind(config).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        whole = model(pixel_values=image).last_hidden_state
        model.encoder.layers = torch.nn.ModuleList()
        without = model(pixel_values=image).last_hidden_state
    return ((whole - without).norm() / whole.norm()).item()


fresh = {name: share_of_blocks(config(**SIZES, patch_size=8), kind) for name, (config, kind) in KINDS.items()}
usual = share_of_blocks(BlipVisionConfig(**SIZES, patch_size=8, initializer_range=0.02), BlipVisionModel)
print("   ".join(f"{name} {value:.1e}" for name, value in fresh.items()), f"  with initializer_range=0.02: blip {usual:.1e}")
if max(fresh.values()) > 1e-5 or usual < 1e-3:
    sys.exit("the behaviour has changed")
PYTHON
