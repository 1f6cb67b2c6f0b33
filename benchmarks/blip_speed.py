"""BLIP at real size, with random weights: ours in float32 and int8 against transformers, and LAVIS' loops, in float32.

    python benchmarks/blip_speed.py [--rows caption questions ...] [--sizes base large] [--rounds 3] [--threads 2]

All have the same weights and see the same images, of 640x480 pixels, and take turns; each round has a new image. Texts
of random weights never end, so all texts of a row have the same number of tokens. In float32 the texts have to be the
peer's; how many are in int8 is told. Seconds are medians; a ratio is the median of those of the rounds, of the time on
the clock and of the CPU's time, of all threads, in which other programs on the machine count little.

    caption    one image, beams of 3 and 5, --tokens new tokens; transformers. A line below each says what the products
               of the image with the weights of its encoder take by themselves: in float32, no caption is faster
    questions  8 questions about one image, greedy, 5 tokens; transformers reads them as one batch
    rank       3,128 answers, of which 128 are read whole, to one question, and to 5 about one image; LAVIS' loop
    retrieval  1,000 images and 5,000 texts, both ways, 128 of each read together; LAVIS' loop
    memory     the most that loading and captioning take, BLIP large, each in a process of its own

LAVIS' loops are written down here as `lavis_rank` and `lavis_pairs`: what it computes, on transformers' modules.
The costs of "retrieval" are measured per image, per text and per pair of both, and multiplied by how many there are.
"""

from __future__ import annotations

import argparse
import platform
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from blip_pair import DECODE, PAD, Models, make, photo
from peak_memory import peak
from results import Row, add_json_option, finish
from torch import Tensor, nn
from turns import FIELDS, FLOAT32, HEAD, INT8, PEER, Figures, Taken, take_turns

from openblip.checkpoints.blip_models import PROMPT
from openblip.checkpoints.transformers.blip import save_blip_folder
from openblip.models.abilities import matcher_of
from openblip.models.model import Model

QUESTIONS, ANSWER_TOKENS = 8, 5
PRODUCTS = "products"
ANSWERS, READ_WHOLE = 3128, 128
SLICE = 32
"""Pairs of image and text that are measured."""
IMAGES, TEXTS, TOGETHER = 1000, 5000, 128
LONGEST = 35
"""Tokens that LAVIS pads every text of retrieval to."""


def captions(options: argparse.Namespace) -> list[Figures]:
    found = []
    for size in options.sizes:
        models = make(size, "caption", 384)
        models.settle(lambda model: caption(model, 0, 3, max(options.tokens)), 8)
        for beams in (3, 5):
            for tokens in options.tokens:
                found.append(captions_of(models, size, beams, tokens, options.rounds))
                print(found[-1].line(), products_line(found[-1]), sep="\n", flush=True)
    return found


def captions_of(models: Models, size: str, beams: int, tokens: int, rounds: int) -> Figures:
    prompt = torch.tensor([models.ids(PROMPT)])

    def peer(number: int) -> list[str]:
        ids = models.theirs.generate(
            pixel_values=models.pixels(photo(number)),
            input_ids=prompt.clone(),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            num_beams=beams,
        )
        return models.texts(ids, tokens)

    ways = {
        PEER: peer,
        FLOAT32: lambda number: caption(models.float32, number, beams, tokens),
        INT8: lambda number: caption(models.int8, number, beams, tokens),
        PRODUCTS: lambda _: products(models.float32),
    }
    return take_turns(f"{size}: caption, beam {beams}, {tokens} tokens", ways, rounds)


def products(model: Model) -> list[str]:
    """What an image is multiplied by on its way through the encoder, and nothing else: no attention, no text."""
    encoder = model.network.vision
    for layer in encoder.blocks.modules():
        if isinstance(layer, nn.Linear):
            F.linear(torch.ones(encoder.num_patches, layer.in_features), layer.weight, layer.bias)
    return []


def products_line(figures: Figures) -> str:
    wall, cpu = (f"{figures.ratio(PRODUCTS, of):.2f}" for of in FIELDS)
    return (
        f"| - the image's float32 products alone | | {figures.seconds(PRODUCTS):.3f} | **{wall}** | {cpu} | | | | | |"
    )


def caption(model: Model, number: int, beams: int, tokens: int) -> list[str]:
    model.image_cache.clear()  # or the next row would find the image encoded
    found = model.caption(photo(number), num_beams=beams, max_new_tokens=tokens, min_new_tokens=tokens, details=True)
    return ["".join(found.tokens)]


def questions(options: argparse.Namespace) -> list[Figures]:
    models = make("base", "answer", 384)
    asked = question_texts()
    ids = torch.tensor([[DECODE + 1, *models.ids(text)[1:]] for text in asked])

    def peer(number: int) -> list[str]:
        pixels = models.pixels(photo(number)).expand(len(ids), -1, -1, -1)
        found = models.theirs.generate(
            input_ids=ids, pixel_values=pixels, max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS, num_beams=1
        )
        return models.texts(found, ANSWER_TOKENS)

    def ours(model: Model, number: int) -> list[str]:
        model.image_cache.clear()
        found = model.ask(
            photo(number),
            asked,
            num_beams=1,
            max_new_tokens=ANSWER_TOKENS,
            min_new_tokens=ANSWER_TOKENS,
            template="{question}",
            details=True,
        )
        return ["".join(one.tokens) for one in found]

    models.settle(lambda model: ours(model, 0), 8)
    ways = {
        PEER: peer,
        FLOAT32: lambda number: ours(models.float32, number),
        INT8: lambda number: ours(models.int8, number),
    }
    found = take_turns(f"base: {QUESTIONS} questions, greedy, {ANSWER_TOKENS} tokens", ways, options.rounds)
    print(found.line(), flush=True)
    return [found]


def question_texts() -> list[str]:
    """Of one length, so that the peer pads none: what its padding changes is no matter of speed."""
    rng = random.Random(1)
    return [" ".join(f"unused{rng.randrange(2000, 9000)}" for _ in range(6)) + "?" for _ in range(QUESTIONS)]


def rankings(options: argparse.Namespace) -> list[Figures]:
    models = make("base", "answer", 480)
    answers = answer_texts()
    found = []
    for count in (1, 5):
        found.append(rankings_of(models, question_texts()[:count], answers, options.rounds))
        print(found[-1].line(), flush=True)
    return found


def rankings_of(models: Models, asked: list[str], answers: list[str], rounds: int) -> Figures:
    def peer(number: int) -> list[str]:
        pixels = models.pixels(photo(number))
        return [lavis_rank(models, pixels, text, answers) for text in asked]

    def ours(model: Model, number: int) -> list[str]:
        model.image_cache.clear()
        rows = model.rank_answers(photo(number), asked, answers, first=READ_WHOLE, template="{question}")
        return [row[0].answer for row in rows]

    models.settle(lambda model: ours(model, 0), 5)
    ways = {
        PEER: peer,
        FLOAT32: lambda number: ours(models.float32, number),
        INT8: lambda number: ours(models.int8, number),
    }
    name = f"base, 480 px: rank, {len(asked)} question{'s' if len(asked) > 1 else ''}, {ANSWERS:,} answers"
    return take_turns(name, ways, rounds)


def answer_texts() -> list[str]:
    """As long as those of VQAv2 are: most are one word."""
    rng = random.Random(2)
    lengths = (rng.choice((1, 1, 1, 2, 3)) for _ in range(ANSWERS))
    return [" ".join(f"unused{rng.randrange(2000, 9000)}" for _ in range(length)) for length in lengths]


def lavis_rank(models: Models, pixels: Tensor, question: str, answers: Sequence[str]) -> str:
    """The best answer as LAVIS finds it: the image and the question once for each pair of them, all answers' first
    tokens, then the likeliest answers whole, each with a copy of the question's states, by smoothed loss."""
    image = models.theirs.vision_model(pixels)[0]
    ids = torch.tensor([[DECODE + 1, *models.ids(question)[1:]]])
    states = models.theirs.text_encoder(input_ids=ids, encoder_hidden_states=image)[0]
    decoder = models.theirs.text_decoder
    start = torch.tensor([[DECODE]])
    rows = [[DECODE, *models.ids(answer)[1:]] for answer in answers]
    longest = max(map(len, rows))
    candidates = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    logits = decoder(start, encoder_hidden_states=states).logits[:, 0]
    best = logits.softmax(dim=1)[0, candidates[:, 1]].topk(READ_WHOLE).indices
    chosen = candidates[best]
    read = decoder(
        chosen,
        attention_mask=(chosen != PAD).long(),
        encoder_hidden_states=states.repeat_interleave(READ_WHOLE, dim=0),
    ).logits
    targets = chosen[:, 1:].masked_fill(chosen[:, 1:] == PAD, -100)
    losses = F.cross_entropy(read[:, :-1].transpose(1, 2), targets, reduction="none", label_smoothing=0.1).sum(dim=1)
    return answers[int(best[losses.argmin()])]


def retrieval(options: argparse.Namespace) -> list[Figures]:
    """Costs per image, per text and per pair, of each way."""
    models = make("base", "match", 384)
    theirs, texts = models.theirs, retrieval_texts()
    rows = [models.ids(text) for text in texts]
    ids = torch.tensor([[*row, *[PAD] * (LONGEST - len(row))] for row in rows])
    mask = (ids != PAD).long()
    with_image = torch.cat([torch.full_like(ids[:, :1], DECODE + 1), ids[:, 1:]], dim=1)
    with torch.inference_mode():
        seen = theirs.vision_model(models.pixels(photo(0)))[0]
    # Layers that read texts alone are packed only after several batches.
    models.settle(lambda model: model.match(photo(0), texts), 8)
    image, alone, kept, pairs = (
        {PEER: work}
        for work in (
            lambda number: [str(theirs.vision_model(models.pixels(photo(number)))[0].shape[1])],
            lambda _: best(F.normalize(theirs.text_proj(theirs.text_encoder(ids, mask)[0][:, 0]), dim=-1)[:, 0]),
            lambda _: ["0"],
            lambda _: best(lavis_pairs(theirs, seen, with_image, mask)),
        )
    )
    for way, model in {FLOAT32: models.float32, INT8: models.int8}.items():
        image[way], alone[way], kept[way], pairs[way] = our_costs(model, texts, seen)
    return [
        take_turns("an image", image, options.rounds),
        take_turns(f"{SLICE} texts alone", alone, options.rounds),
        take_turns("keys and values of an image", kept, options.rounds),
        take_turns(f"{SLICE} texts with an image", pairs, options.rounds),
    ]


def our_costs(model: Model, texts: list[str], seen: Tensor) -> tuple[Callable[[int], list[str]], ...]:
    """The same of ours, in the same order."""
    matcher = matcher_of(model, "match")
    read, memory = matcher.read(texts), matcher.remember(seen)
    everything = torch.arange(SLICE)[None]
    return (
        lambda number: [str(len(model.encode_image(photo(number)).features))],
        lambda _: best(matcher.read(texts).embeds[:, 0]),
        lambda _: [str(matcher.remember(seen).batch - 1)],
        lambda _: best(matcher.match(memory, read, everything)[0, :, 1]),
    )


def retrieval_texts() -> list[str]:
    """As long as captions of COCO are."""
    rng = random.Random(3)
    lengths = (max(6, round(rng.gauss(11, 2.5))) for _ in range(SLICE))
    return [" ".join(f"unused{rng.randrange(2000, 9000)}" for _ in range(length)) for length in lengths]


def best(scores: Tensor) -> list[str]:
    """Which has the highest."""
    return [str(int(scores.argmax()))]


def lavis_pairs(theirs: Any, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits of an image with texts, as LAVIS computes them: the image's features are copied for each text."""
    copies = seen.repeat(len(ids), 1, 1)
    states = theirs.text_encoder(
        input_ids=ids,
        attention_mask=mask,
        encoder_hidden_states=copies,
        encoder_attention_mask=torch.ones(copies.shape[:2], dtype=torch.long),
    )[0]
    logits: Tensor = theirs.itm_head(states[:, 0])[:, 1]
    return logits


def whole_retrieval(parts: Sequence[Figures]) -> Figures:
    """What all images and texts cost: LAVIS reads a pair for each of the best of either, ours remembers each image
    twice, once for the texts that it is searched for with and once for those that search it."""
    counts = [IMAGES, TEXTS / SLICE, 2 * IMAGES, (IMAGES + TEXTS) * TOGETHER / SLICE]

    def total(way: str, place: int) -> Taken:
        cells = [part.taken[way][place] for part in parts]
        return Taken(
            sum(count * one.wall for count, one in zip(counts, cells, strict=True)),
            sum(count * one.cpu for count, one in zip(counts, cells, strict=True)),
            [one.result for one in cells],
        )

    rounds = len(parts[0].taken[PEER])
    taken = {way: [total(way, place) for place in range(rounds)] for way in (PEER, FLOAT32, INT8)}
    return Figures(f"base: retrieval, {IMAGES:,} images, {TEXTS:,} texts, computed from the rows above", taken)


OURS_LOADED = """
import openblip, sys
from PIL import Image
model = openblip.load(sys.argv[1], dtype=sys.argv[2])
image = Image.effect_noise((640, 480), 50).convert("RGB")
model.caption(image, num_beams=3, max_new_tokens=20, min_new_tokens=20)
"""
THEIRS_LOADED = """
import sys, torch, transformers
from PIL import Image
transformers.logging.disable_progress_bar()
model = transformers.BlipForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
processor = transformers.AutoProcessor.from_pretrained(sys.argv[1])
image = Image.effect_noise((640, 480), 50).convert("RGB")
inputs = processor(images=image, text="a picture of", return_tensors="pt")
model.generate(**inputs, num_beams=3, max_new_tokens=20, min_new_tokens=20)
"""


def memory() -> list[Row]:
    """Prints a table of its own."""
    with tempfile.TemporaryDirectory() as folder:
        made: Any = make("large", "caption", 384).float32.parts
        save_blip_folder(made, Path(folder))
        del made
        theirs = peak(THEIRS_LOADED, folder)
        print("\n| BLIP large, load and caption | GB | of the peer's |\n|---|---|---|")
        print(f"| transformers, float32 | {theirs / 1e9:.2f} | 1 |", flush=True)
        rows = []
        for dtype in (FLOAT32, INT8, "int4"):
            own = peak(OURS_LOADED, folder, dtype)
            print(f"| ours, {dtype} | {own / 1e9:.2f} | {own / theirs:.2f} |", flush=True)
            rows.append(Row(f"peak memory of BLIP large, {dtype}", own / theirs, "of the peer's", less_is_better=True))
    return rows


TABLES = ("caption", "questions", "rank", "retrieval", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--sizes", nargs="+", default=["base", "large"], choices=["base", "large"], help="of captions")
    parser.add_argument("--tokens", nargs="+", type=int, default=[10], help="of captions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    settings = f"{options.threads} threads, {options.rounds} rounds"
    print(
        f"{settings}, {torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n\n{HEAD}"
    )
    rows: list[Row] = []
    different: list[str] = []
    for name, measure in {"caption": captions, "questions": questions, "rank": rankings}.items():
        if name in options.rows:
            found = measure(options)
            rows += [row for figures in found for row in figures.rows()]
            different += [figures.name for figures in found if len(set(figures.same(FLOAT32))) > 1]
    if "retrieval" in options.rows:
        parts = retrieval(options)
        whole = whole_retrieval(parts)
        for figures in (*parts, whole):
            print(figures.line(), flush=True)
        rows += whole.rows()
    if "memory" in options.rows:
        rows += memory()
    finish(rows, options.json, settings)
    if different:
        raise SystemExit(f"in float32, texts are not the peer's: {'; '.join(different)}")


if __name__ == "__main__":
    main()
