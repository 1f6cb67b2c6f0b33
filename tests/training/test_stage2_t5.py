"""Stage 2 with a T5: the encoder reads what is asked, the decoder says the answer; what it cannot do is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.data.captions_to_questions import Question
from openblip.data.pairs import DataSource, ImageText
from openblip.errors import OptionError
from openblip.nn.blip2 import Blip2Network
from openblip.nn.t5 import T5Config
from openblip.text import Tokenizer
from openblip.training.input.batches import BatchRow
from openblip.training.loop.precision import Arithmetic
from openblip.training.losses import IGNORED, TextBatch, stage2_t5_loss
from openblip.training.recipe import Mixture, Recipe, Stage
from openblip.training.run import train
from openblip.training.tasks.stages import Stage2Task
from openblip.training.tasks.task import Runtime, Views

from ..conftest import lively

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "ball", "what", "is", "it", "Question:", "Answer:", "it?"]


@pytest.fixture(scope="module")
def parts(tiny_parts: ModelParts) -> ModelParts:
    fast = FastTokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:3]])
    t5 = T5Config(len(WORDS), width=16, depth=1, decoder_depth=2, num_heads=2, head_width=4, ffn_width=24)
    config = replace(tiny_parts.network.config, language=t5)
    return replace(
        tiny_parts,
        network=lively(Blip2Network(config)),
        tokenizer=Tokenizer(fast, "</s>", "<pad>"),
        defaults=replace(tiny_parts.defaults, stop_token="</s>"),
    )


SETTING = Runtime(Arithmetic(torch.device("cpu")))


def recipe(**values: object) -> Recipe:
    whole = Recipe(stage=Stage.STAGE2, output="", data=[DataSource("balls")], mixture=Mixture(questions=1.0))
    return replace(whole, **values)  # type: ignore[arg-type]


def test_the_loss_is_that_of_the_texts_written_out(parts: ModelParts) -> None:
    asked = ImageText(Path("a.png"), captions=("a ball",), questions=(Question("what is it?", "a red ball", "what"),))
    told = ImageText(Path("b.png"), captions=("red",))
    batch = [BatchRow(0, asked, 0, random.Random(1)), BatchRow(0, told, 0, random.Random(1))]
    features = torch.randn(2, 4, 1288, generator=torch.Generator().manual_seed(0))
    task = Stage2Task(parts, recipe(), [asked, told], SETTING)
    found = task(batch, Views(patches=features))
    assert list(found) == ["lm"]
    question = [WORDS.index(word) for word in ("Question:", "what", "is", "it?", "Answer:", "</s>")]
    text = TextBatch(torch.tensor([question, [1, 0, 0, 0, 0, 0]]), torch.tensor([[True] * 6, [True] + [False] * 5]))
    labels = torch.tensor([[3, 4, 5, 1], [4, 1, IGNORED, IGNORED]])
    network = parts.network
    expected = stage2_t5_loss(network, network.normalize(features), text, labels)
    assert torch.equal(found["lm"], expected)
    found["lm"].backward()
    assert network.prompt_projection.weight.grad is not None and network.prompt_projection.weight.grad.abs().max() > 0
    assert task.trained()[-1] is network.prompt_projection
    assert Stage2Task(parts, recipe(train_decoder=True), [], SETTING).trained()[-1] is network.t5


@pytest.mark.parametrize("change", [{"stage": Stage.LANGUAGE}, {"self_critical": 2}, {"decoder": "other"}])
def test_what_there_is_for_decoders_alone_is_refused(
    parts: ModelParts, tmp_path: Path, change: dict[str, object]
) -> None:
    save_native(parts, tmp_path)
    (tmp_path / "balls.jsonl").write_text('{"image": "a.png", "captions": ["a ball"]}')
    data = [DataSource("balls", captions="balls.jsonl")]
    wrong = recipe(init=str(tmp_path), data=data, data_root=str(tmp_path), output=str(tmp_path / "new"), **change)
    with pytest.raises(OptionError, match="has a T5, which cannot be trained with"):
        train(wrong)
