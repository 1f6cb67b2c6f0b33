"""What files say of each kind of language model: one row a kind, looked up by the `kind` of its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from openblip.checkpoints.names import opt, t5
from openblip.checkpoints.names.engine import BLIP2_LANGUAGE
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
        in_blip2: our names of modules to those in a BLIP-2 folder of transformers.
        apart: our name of a tensor to the names of those that it joins, as the tables have them.
        words: the word table in a BLIP-2 folder.
        second_words: names there that repeat it.
        ties_head: whether the output head repeats it, too, by the sizes.
        own_head: whether the output head may be a table of its own.
        unused: ends of names that old files have and nothing reads.
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
    in_blip2: Mapping[str, str]
    apart: Callable[[str], list[str]]
    words: str
    second_words: tuple[str, ...]
    ties_head: Callable[[Any], bool]
    own_head: bool
    unused: tuple[str, ...] = ()


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
        in_blip2={ours: f"{BLIP2_LANGUAGE}model.decoder.{theirs}" for theirs, ours in opt.OPT.items()},
        apart=opt.parts_of,
        words=f"{BLIP2_LANGUAGE}model.decoder.embed_tokens.weight",
        second_words=(),
        ties_head=lambda config: True,
        own_head=False,
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
        in_blip2={ours: BLIP2_LANGUAGE + theirs for ours, theirs in t5.THEIRS.items()},
        apart=t5.parts_of,
        words=f"{BLIP2_LANGUAGE}shared.weight",
        second_words=tuple(BLIP2_LANGUAGE + second for second in t5.TIED),
        ties_head=lambda config: bool(config.tied_head),
        own_head=True,
        unused=(t5.UNUSED,),
    ),
}
