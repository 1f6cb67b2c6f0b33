"""What files say of each kind of language model: one row a kind, looked up by the `kind` of its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from openblip.checkpoints.names import opt, t5
from openblip.nn.blip2 import OwnLanguageConfig
from openblip.nn.opt import OptConfig
from openblip.nn.t5 import T5Config


@dataclass(frozen=True)
class LanguageFiles:
    """How one kind of language model lies in the files of other projects.

    Attributes:
        config: its sizes.
        start_id, pad_id, stop_id: where a folder of transformers does not say. What T5 reads begins with nothing: its
            stop token stands there.
        lavis_prefix: of its tensors in a LAVIS checkpoint.
        lavis_projection: LAVIS' name of the layer that makes the visual prompt.
        from_lavis: the tensors under `lavis_prefix`, and the sizes, to a state under our names.
        to_transformers: such a state to the names of the language model's own folder.
        tied: second names of tensors in that folder, which LAVIS' runner saves besides, and their first.
    """

    config: type[OwnLanguageConfig]
    start_id: int
    pad_id: int
    stop_id: int
    lavis_prefix: str
    lavis_projection: str
    from_lavis: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]
    to_transformers: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    tied: Mapping[str, str]


LANGUAGES = {
    OptConfig.kind: LanguageFiles(
        config=OptConfig,
        start_id=2,
        pad_id=1,
        stop_id=2,
        lavis_prefix=opt.LAVIS_PREFIX,
        lavis_projection="opt_proj",
        from_lavis=lambda state, config: opt.decoder_from_lavis(state),
        to_transformers=opt.opt_to_transformers,
        tied={"lm_head.weight": "model.decoder.embed_tokens.weight"},
    ),
    T5Config.kind: LanguageFiles(
        config=T5Config,
        start_id=1,
        pad_id=0,
        stop_id=1,
        lavis_prefix=t5.LAVIS_PREFIX,
        lavis_projection="t5_proj",
        from_lavis=t5.t5_from_lavis,
        to_transformers=t5.t5_to_transformers,
        tied=t5.TIED,
    ),
}
