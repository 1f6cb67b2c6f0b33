"""With bad_words, no text has these words, however they are split into tokens and however a text is chosen."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

import openblip
from openblip.checkpoints.openblip.folder import save_native
from openblip.errors import OptionError
from openblip.generation.bad_words import BadWords
from openblip.generation.options import GenerationOptions
from openblip.generation.repeated_words import Vocabulary
from openblip.text import Tokenizer
from tests.models.blip_models import small_parts

ROOT = Path(__file__).parents[2]
MINI = ROOT / "src" / "openblip" / "weights" / "mini"
EXAMPLES = ROOT / "examples"
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_captions": 3, "num_beams": 4},
    "samples": {"num_captions": 3, "top_k": 8, "seed": 3},
}
BAD = ["white", "dog", "dogs", "A group of", "on the Beach", "man"]


def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "bytes":
        return Tokenizer.from_file(MINI / "decoder_tokenizer.json", start_token="</s>", pad_token="<pad>")
    return Tokenizer.from_file(MINI / "qformer_tokenizer.json", start_token="[CLS]", pad_token="[PAD]")


def has(text: str, bad: str) -> bool:
    """Whether the words stand behind one another, whatever is between them."""
    return re.search(r"(?<!\w)" + r"\W+".join(bad.lower().split()) + r"(?!\w)", text.lower()) is not None


@pytest.mark.parametrize("kind", ["bytes", "word pieces"])
def test_a_word_is_forbidden_at_its_last_token_and_nowhere_else(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    vocabulary = Vocabulary(tokenizer.tokens())
    rng = random.Random(0)
    words = "dog dogs skateboarder unicyclist xylophonist white frisbees man zeppelin".split()
    assert len({len(tokenizer.encode(f" {word}")) for word in words}) > 2
    for _ in range(200):
        bad = [*rng.sample(words, 2), "near the dog"]
        text = "".join(
            f"{rng.choice([' ', ', ', '. '])}{rng.choice(['a', 'near the', 'The', *words])}" for _ in range(8)
        )
        ids = tokenizer.encode(text)
        banned = BadWords(vocabulary, bad)
        met = [at for at, token in enumerate(ids) if token in banned.completing(ids[:at])]
        found = [word for word in bad if has(text, word)]
        assert bool(met) == bool(found), (text, bad)
        if met:
            assert any(has(tokenizer.decode(ids[: met[0] + 1]), word) for word in bad)
            assert not any(has(tokenizer.decode(ids[: met[0]]), word) for word in bad)


def test_capitals_hyphens_and_letters_of_several_bytes() -> None:
    tokenizer = tokenizer_of("bytes")
    vocabulary = Vocabulary(tokenizer.tokens())
    for bad, text in (("T-Shirt", " a t-shirt"), ("café", " the Café"), ("DOG", " a dog"), ("red wine", " a Red wine")):
        *front, last = tokenizer.encode(text)
        assert last in BadWords(vocabulary, [bad]).completing(front), bad
    *front, last = tokenizer.encode(" a shirt")
    assert last not in BadWords(vocabulary, ["t-shirt"]).completing(front)
    assert BadWords(vocabulary, []).completing(front) == set()


@pytest.mark.parametrize("way", WAYS)
def test_captions_do_without_them(way: str) -> None:
    model = openblip.load("mini", device="cpu")
    photos = sorted(EXAMPLES.glob("*.jpg"))

    def texts(found: Any) -> list[str]:
        return [text for one in found for text in ([one] if isinstance(one, str) else one)]

    options = WAYS[way]
    usual = texts(model.caption(photos, **options))
    found = model.caption(photos, bad_words=BAD, **options)
    assert sum(has(text, word) for text in usual for word in BAD) >= 5
    assert not [text for text in texts(found) if any(has(text, word) for word in BAD)]
    assert all(len(text.split()) > 3 for text in texts(found))
    assert texts([model.caption(photos[6], bad_words=BAD, **options)]) == texts([found[6]])
    if way == "greedy":
        assert "".join(model.caption(photos[6], bad_words=BAD, stream=True)) == found[6]
        assert model.caption(photos, bad_words=["zeppelin"], **options) == model.caption(photos, **options)


def test_a_vocabulary_of_word_pieces(tmp_path: Path) -> None:
    """A BLIP, which says nonsense here: words of it are forbidden one after the other."""
    save_native(small_parts("caption", tmp_path), tmp_path / "model", "float32")
    model = openblip.load(tmp_path / "model", device="cpu")
    bad: list[str] = []
    for _ in range(4):
        text = str(model.caption(EXAMPLES / "000000377575.jpg", max_new_tokens=12, min_new_tokens=6, bad_words=bad))
        assert not any(has(text, word) for word in bad)
        bad += re.findall(r"\w+", text)[:1]
    assert len(set(bad)) == len(bad) >= 2


@pytest.mark.parametrize("words", ["dog", {"dog": 1}, ["dog", 3], [""], ["..."], [None], 3])
def test_what_is_no_list_of_words_is_refused(words: Any) -> None:
    with pytest.raises(OptionError, match=r"bad_words .* must be a list of words"):
        GenerationOptions(bad_words=words)


def test_options() -> None:
    assert GenerationOptions(bad_words=["b", "a"]).bad_words == ("b", "a")
    with pytest.raises(OptionError, match="bad_words needs the vocabulary"):
        GenerationOptions(bad_words=["a"]).resolved()
    assert GenerationOptions(bad_words=[]).resolved().bad_words == ()
