"""With no_repeat_words, no content word occurs twice, whatever its pieces and however a text is chosen."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import openblip
from openblip.errors import OptionError
from openblip.generation.engine import generate, stream
from openblip.generation.options import GenerationOptions
from openblip.generation.repeated_words import FUNCTION_WORDS, Vocabulary
from openblip.nn.opt import Opt, OptConfig
from openblip.text import Tokenizer

MINI = Path(openblip.__file__).parent / "weights" / "mini" / "decoder_tokenizer.json"
WAYS = {
    "greedy": GenerationOptions(max_new_tokens=20),
    "beams": GenerationOptions(max_new_tokens=20, num_beams=4, num_return_sequences=3),
    "samples": GenerationOptions(max_new_tokens=20, top_k=8, seed=3, num_return_sequences=3),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(MINI, start_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer.tokens())


@pytest.fixture(scope="module")
def chatterbox(tokenizer: Tokenizer) -> Opt:
    """A language model that knows a few tokens only, pieces of words among them, and so repeats itself."""
    torch.manual_seed(5)
    # In float64 a prompt in a batch and alone give the same scores on every CPU, and so the same samples.
    model = Opt(OptConfig(tokenizer.vocab_size, 32, 2, 4, 64, max_positions=64)).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    liked = {
        token
        for word in " a and of dog hat skateboarder unicyclist t-shirt , .".split(" ")
        for token in tokenizer.encode(f" {word}")
    }
    rows = [row for row in range(tokenizer.vocab_size) if row not in liked]
    with torch.no_grad():
        model.tokens.weight[rows] = 0
    return model.requires_grad_(False)


def repeated(text: str) -> set[str]:
    words = [word for word in re.findall(r"[\w'-]+", text.lower()) if word not in FUNCTION_WORDS]
    return {word for word in words if words.count(word) > 1}


@pytest.mark.parametrize("way", WAYS)
def test_no_content_word_occurs_twice(chatterbox: Opt, tokenizer: Tokenizer, vocabulary: Vocabulary, way: str) -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randn(4, 32, generator=generator) for _ in range(8)]
    options = replace(WAYS[way], no_repeat_words=True, vocabulary=vocabulary)
    found = generate(chatterbox, prompts, options)
    usual = generate(chatterbox, prompts, WAYS[way])
    texts = [tokenizer.decode(one.ids) for group in found for one in group]
    assert not any(repeated(text) for text in texts), texts
    assert sum(bool(repeated(tokenizer.decode(one.ids))) for group in usual for one in group) >= len(prompts) // 2
    for prompt, group in zip(prompts, found, strict=True):
        assert [one.ids for one in generate(chatterbox, [prompt], options)[0]] == [one.ids for one in group]
    if way == "greedy":
        assert tuple(stream(chatterbox, prompts[0], options)) == found[0][0].ids


def test_words_of_any_number_of_pieces_are_forbidden_at_their_last(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    rng = random.Random(0)
    words = ["dog", "skateboarder", "unicyclist", "t-shirt", "Zebra", "xylophonists"]
    assert {len(tokenizer.encode(f" {word}")) for word in words} >= {1, 3, 4}
    for _ in range(50):
        word, others = rng.choice(words), rng.sample(words, 2)
        text = f"a {word} and, near the {others[0]}. a {others[1]} with"
        *front, last = tokenizer.encode(f" {word}")
        assert last in vocabulary.repeating([*tokenizer.encode(text), *front])
        assert last not in vocabulary.repeating([*tokenizer.encode(text.replace(word, "thing")), *front])


def test_function_words_and_longer_words_may_follow(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    ids = tokenizer.encode("a dog and a skate of the")
    forbidden = vocabulary.repeating(ids)
    assert forbidden.isdisjoint(token for word in FUNCTION_WORDS for token in tokenizer.encode(f" {word}"))
    assert forbidden == {
        token for word in ("dog", "skate") for token in vocabulary.repeating(tokenizer.encode(f" {word}"))
    }
    assert vocabulary.repeating([]) == vocabulary.repeating([-1, tokenizer.start_id, 10**6]) == set()


@pytest.mark.parametrize("way", WAYS)
def test_words_of_prompts_count(chatterbox: Opt, tokenizer: Tokenizer, vocabulary: Vocabulary, way: str) -> None:
    """Prompts of different lengths in one batch."""
    ids = [torch.tensor(tokenizer.encode(text)) for text in (" a hat", " a dog and a skateboarder in a hat", " dog,")]
    options = replace(WAYS[way], no_repeat_words=True, vocabulary=vocabulary)
    found = generate(chatterbox, [chatterbox.embed(row) for row in ids], options, prompt_ids=ids)
    for row, texts in zip(ids, found, strict=True):
        for text in texts:
            assert not repeated(tokenizer.decode([*row.tolist(), *text.ids]))
        alone = generate(chatterbox, [chatterbox.embed(row)], options, prompt_ids=[row])[0]
        assert [one.ids for one in alone] == [one.ids for one in texts]


def test_without_a_vocabulary_the_option_is_refused() -> None:
    with pytest.raises(OptionError, match="needs the vocabulary"):
        GenerationOptions(no_repeat_words=True).resolved()
