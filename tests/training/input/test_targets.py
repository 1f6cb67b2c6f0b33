"""Texts of training: shares are kept, contexts never give prompts, vocabularies encode everything."""

from __future__ import annotations

import random
from pathlib import Path

from openblip.data.captions_to_questions import Question
from openblip.data.pairs import ImageText
from openblip.text import PromptTemplates, Tokenizer, pad_ids
from openblip.training.init.vocabulary import train_decoder_tokenizer, trim_wordpiece
from openblip.training.input.targets import Target, choose_context, choose_target, encode_target
from openblip.training.recipe import Mixture
from openblip.training.tasks.stages import mask_labels

IMAGE = ImageText(
    Path("a.jpg"),
    captions=("a dog runs", "a brown dog is running in the park", "the dog plays"),
    questions=(Question("what is running?", "dog", "object"),),
    made_questions=(Question("what is the color of the dog?", "brown", "color"),),
)
TEXTS = [*IMAGE.captions, "Question: what is running? Answer: dog\n", "a photo of"] * 3


def test_shares_of_captions_and_questions() -> None:
    mixture = Mixture(questions=0.3, made_questions=0.25)
    rng = random.Random(0)
    targets = [choose_target(IMAGE, mixture, PromptTemplates(), rng) for _ in range(4000)]
    questions = [target for target in targets if target.prompt.startswith("Question:")]
    made = [target for target in questions if target.answer == " brown"]
    assert 0.27 < len(questions) / len(targets) < 0.33
    assert 0.20 < len(made) / len(questions) < 0.30
    assert {target.answer.strip() for target in targets} == {*IMAGE.captions, "dog", "brown"}


def test_an_image_with_questions_alone_is_only_asked() -> None:
    image = ImageText(Path("b.jpg"), statements=("dog is running",), questions=IMAGE.questions)
    rng = random.Random(0)
    for _ in range(50):
        target = choose_target(image, Mixture(questions=0.1, statements=0.0), PromptTemplates(), rng)
        assert target.prompt == "Question: what is running? Answer:"


def test_contexts_hold_what_the_answer_needs() -> None:
    target = Target("Question: what is running? Answer:", " dog", "what is running?")
    rng = random.Random(1)
    contexts = [choose_context(IMAGE, target, rng) for _ in range(300)]
    assert any(not context for context in contexts)
    assert sum("dog" in context.split() for context in contexts) > 200
    assert not any("Question" in context for context in contexts)


def test_only_answer_and_stop_token_are_learnt() -> None:
    tokenizer = Tokenizer(train_decoder_tokenizer(TEXTS, 400), "</s>", "<pad>")
    stop = tokenizer.only_id("\n")
    rows = [
        encode_target(Target("Question: what is running? Answer:", " dog", "what is running?"), "", tokenizer, stop),
        encode_target(Target("", "a dog runs"), "brown park", tokenizer, stop),
    ]
    ids, mask = pad_ids([row.ids for row in rows], tokenizer.pad_id)
    labels = mask_labels(ids, mask, [row.prompt_length for row in rows])
    learnt = [tokenizer.fast.decode([i for i in row.tolist() if i >= 0], skip_special_tokens=False) for row in labels]
    assert learnt == [" dog\n", "a dog runs\n"]


def test_decoder_vocabulary_round_trips_any_text_in_opts_order() -> None:
    fast = train_decoder_tokenizer(TEXTS, 400)
    assert [fast.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    for text in ("a dog runs\n", "naïve Ωmega 🐕 \t x", " leading"):
        assert fast.decode(fast.encode(text).ids) == text


def test_trimmed_vocabulary_keeps_used_pieces_and_spells_the_rest() -> None:
    letters = [chr(code) for code in range(97, 123)]
    full = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    full += ["dog", "runs", "##ning", "zebra", "the"]
    trimmed = trim_wordpiece(full, TEXTS, vocab_size=5 + 52 + 3)
    tokenizer = trimmed.tokenizer
    pieces = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"]
    assert "dog" in pieces
    assert "zebra" not in pieces
    assert [full[kept] if kept >= 0 else None for kept in trimmed.kept] == [
        piece if piece != "[DEC]" else None for piece in pieces
    ]
    assert "[UNK]" not in tokenizer.encode("zebra dog").tokens
