"""Training texts for the language model: captions and answered questions, with a context in front of them.

BLIP-2 puts soft visual tokens in front of a frozen language model, which works because a large model can use any
context. A small model has to learn that. Here, other captions of the image, or some of their words in random order,
are in the place of the visual tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from openblip.data.captions_to_questions import Question, statement_from_question
from openblip.data.pairs import ImageText
from openblip.text import PromptTemplates, Tokenizer, trim_prompt
from openblip.training.recipe_keys import Mixture

STOP_WORDS = frozenset(
    "a an the is are was were be and or of to in on at with by for from as his her their its he she it they "
    "this that there some while who which has have had into over through what how many does do".split()
)
MAX_CONTEXT_WORDS = 16
MAX_CONTEXT_TOKENS = 24
KEPT_WORDS = 0.85
PREFIX = "a photo of"


@dataclass(frozen=True)
class Target:
    """A prompt and the text that should follow it, without start and stop tokens.

    Attributes:
        question: the question inside the prompt; None for a caption.
    """

    prompt: str
    answer: str
    question: str | None = None


def choose_target(image: ImageText, mixture: Mixture, prompts: PromptTemplates, rng: random.Random) -> Target:
    """A caption or a question of an image, by the recipe's mixture."""
    question = choose_question(image, mixture, rng)
    if question is not None:
        # If several people answered, each answer is chosen in proportion to its frequency.
        answer = rng.choice(question.answers) if question.answers else question.answer
        return Target(prompts.ask(question.question), " " + answer, question.question)
    caption = choose_caption(image, mixture, rng)
    if rng.random() < 0.1:
        return Target(PREFIX, " " + caption)
    prompt = trim_prompt(prompts.caption)
    # Behind a prompt, the space before a caption is part of its first word.
    return Target(prompt, f" {caption}" if prompt else caption)


def choose_targets(
    image: ImageText, mixture: Mixture, prompts: PromptTemplates, rng: random.Random, count: int
) -> list[Target]:
    """Several texts of one image, different ones if it has enough."""
    chosen: list[Target] = []
    for _ in range(count):
        target = choose_target(image, mixture, prompts, rng)
        for _ in range(3):
            if target not in chosen:
                break
            target = choose_target(image, mixture, prompts, rng)
        chosen.append(target)
    return chosen


def choose_caption(image: ImageText, mixture: Mixture, rng: random.Random) -> str:
    """A caption or a statement, by the recipe's mixture."""
    if image.statements and (not image.captions or rng.random() < mixture.statements):
        return rng.choice(image.statements)
    return rng.choice(image.captions)


def choose_question(image: ImageText, mixture: Mixture, rng: random.Random) -> Question | None:
    """A question; None if the mixture chooses a caption."""
    if not image.questions and not image.made_questions:
        return None
    describable = image.captions or (image.statements and mixture.statements)
    if describable and rng.random() >= mixture.questions:
        return None
    return choose_people_or_made(image, mixture, rng)


def choose_people_or_made(image: ImageText, mixture: Mixture, rng: random.Random) -> Question:
    """One of people's questions, or of those that were made from captions, by the recipe's mixture."""
    if image.made_questions and (not image.questions or rng.random() < mixture.made_questions):
        return rng.choice(image.made_questions)
    return rng.choice(image.questions)


def choose_context(image: ImageText, target: Target, rng: random.Random) -> str:
    """The context in the place of the visual tokens: nothing, another caption, or shuffled words."""
    kind = rng.random()
    if kind < 0.15:
        return ""
    answer = target.answer.strip()
    others = [text for text in (*image.captions, *image.statements) if text != answer]
    if target.question is not None:
        answer = statement_from_question(target.question.rstrip("?"), answer) or answer
    if kind < 0.35:
        return rng.choice(others or [answer])
    # Words of the target make the context useful, as an image would.
    chosen = rng.sample(others, min(len(others), 2)) + ([answer] if not others or rng.random() < 0.6 else [])
    words = [word for text in chosen for word in text.split()]
    content = list(dict.fromkeys(word for word in words if word not in STOP_WORDS))
    content = [word for word in content if rng.random() < KEPT_WORDS]
    rng.shuffle(content)
    return " ".join(content[:MAX_CONTEXT_WORDS])


@dataclass(frozen=True)
class EncodedTarget:
    """Ids with start and stop tokens; `given` of them, from the front, are not to be predicted."""

    ids: list[int]
    prompt_length: int


def encode_target(target: Target, context: str, tokenizer: Tokenizer, stop_id: int) -> EncodedTarget:
    """Context, start token, prompt, answer, stop token."""
    before = tokenizer.encode(context)[:MAX_CONTEXT_TOKENS] if context else []
    prompt = [*before, tokenizer.start_id, *tokenizer.encode(trim_prompt(target.prompt))]
    return EncodedTarget([*prompt, *tokenizer.encode(target.answer), stop_id], len(prompt))
