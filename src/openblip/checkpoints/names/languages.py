"""What files say of each kind of language model: one row a kind, looked up by the `kind` of its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from openblip.checkpoints.names import opt, t5
from openblip.checkpoints.names.engine import BLIP2_LANGUAGE, NameTable
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
        table: its names in a folder of its own, by its sizes; those after `lavis_prefix` are the same.
        tied: second names of tensors in its own folder, which LAVIS' runner saves besides, and their first.
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
    table: Callable[[Any], NameTable]
    tied: Mapping[str, str]
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
        table=lambda config: opt.TABLE,
        tied={"lm_head.weight": "model.decoder.embed_tokens.weight"},
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
        table=t5.table_of,
        tied=t5.TIED,
        words=f"{BLIP2_LANGUAGE}shared.weight",
        second_words=tuple(BLIP2_LANGUAGE + second for second in t5.TIED),
        ties_head=lambda config: bool(config.tied_head),
        own_head=True,
        unused=(t5.UNUSED,),
    ),
}
