"""BLIP-2 weights under LAVIS' names (https://github.com/salesforce/LAVIS), for our network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from openblip.checkpoints.names.engine import first_few, select
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.names.qformer import LAVIS_PREFIXES as QFORMER_PREFIXES
from openblip.checkpoints.names.qformer import qformer_from_lavis
from openblip.checkpoints.names.vit import vit_from_lavis
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Config
from openblip.nn.vit import VitConfig

VISION_PREFIX = "visual_encoder."
NORM = {"ln_vision": "vision_norm"}
MATCHING = {
    "vision_proj": "image_projection",
    "text_proj": "text_projection",
    "itm_head": "itm_head",
    "temp": "temperature",
}


def blip2_from_lavis(state: Mapping[str, Tensor], config: Blip2Config) -> dict[str, Tensor]:
    """A `Blip2Network` state from what LAVIS saves of `blip2` (stage 1), `blip2_opt` or `blip2_t5` (stage 2).

    Args:
        state: the file's "model" entry. Official files lack what was frozen: join the image encoder's tensors
            under `visual_encoder.` and the language model's under `opt_model.` or `t5_model.` first.
        config: sizes; says whether there is a text side (stage 1) and a language model (stage 2).

    Raises:
        CheckpointError: a part is missing altogether, or names that the network has no place for, which are
            listed. Single missing tensors show when the state is loaded.
    """
    if not isinstance(config.vision, VitConfig):
        raise CheckpointError("LAVIS has BLIP-2 with a ViT only: give a config whose image encoder is one")
    parts = {
        "vision": vit_from_lavis(select(state, (VISION_PREFIX,), "image encoder"), config.vision.depth),
        "qformer": qformer_from_lavis(state),
    }
    known = [VISION_PREFIX, *QFORMER_PREFIXES]
    table = dict(NORM)
    if config.qformer.vocab_size:
        table |= MATCHING
    language = config.own_language
    if language is not None:
        files = LANGUAGES[language.kind]
        table |= {files.lavis_projection: "prompt_projection"}
        known.append(files.lavis_prefix)
        parts[language.prefix] = files.from_lavis(state, language)
    renamed = {f"{part}.{name}": tensor for part in parts for name, tensor in parts[part].items()}
    unknown = []
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if name in table:
            renamed[table[name]] = tensor
        elif module in table:
            renamed[f"{table[module]}.{leaf}"] = tensor
        elif not name.startswith(tuple(known)):
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"this BLIP-2 has no place for {first_few(unknown)}: give the config that fits")
    return renamed
