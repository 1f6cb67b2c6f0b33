"""BLIP at real size, with random weights: ours in float32 and int8 against transformers, and LAVIS' loops, in float32.

    python benchmarks/blip_speed.py [--rows caption questions ...] [--sizes base large] [--rounds 3] [--threads 2]

All have the same weights and see the same images, of 640x480 pixels, and take turns; each round has a new image. Texts
of random weights never end, so all texts of a row have the same number of tokens. In float32 the texts have to be the
peer's; how many are in int8 is told. Seconds are medians; a ratio is the median of those of the rounds, of the time on
the clock and of the CPU's time, of all threads, in which other programs on the machine count little.

    caption    one image, beams of 3 and 5, --tokens new tokens; transformers
    questions  8 questions about one image, greedy, 5 tokens; transformers reads them as one batch
    rank       3,128 answers, of which 128 are read whole, to one question, and to 5 about one image; LAVIS' loop
    retrieval  1,000 images and 5,000 texts, both ways, 128 of each read together; LAVIS' loop
    memory     the most that loading and captioning take, BLIP large, each in a process of its own

LAVIS' loops are written down here as `lavis_rank` and `lavis_pairs`: what it computes, on transformers' modules.
The costs of "retrieval" are measured per image, per text and per pair of both, and multiplied by how many there are.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from peak_memory import peak
from PIL import Image
from results import Row, add_json_option, finish
from torch import Tensor

from openblip.checkpoints.blip_models import GENERATION, PROMPT, PROMPTS, Size, Task, blip_config
from openblip.checkpoints.lavis.blip import assemble
from openblip.checkpoints.model_parts import ModelParts, read_defaults
from openblip.checkpoints.names.blip import TRANSFORMERS_PARTS, layout_of
from openblip.checkpoints.transformers.blip import save_blip_folder
from openblip.devices import choose_placement
from openblip.images.transform import ImageTransform
from openblip.models.abilities import matcher_of
from openblip.models.load import model_of
from openblip.models.model import Model
from openblip.nn.blip import BlipNetwork
from openblip.nn.quant.swap import quantize
from openblip.text import PromptTemplates

WARM = 1
"""Rounds that do not count; int8 layers are packed before."""
PEER, FLOAT32, INT8 = "peer", "float32", "int8"
CLASSES: Mapping[Task, Any] = {
    "caption": transformers.BlipForConditionalGeneration,
    "answer": transformers.BlipForQuestionAnswering,
    "match": transformers.BlipForImageTextRetrieval,
}
PAD, UNKNOWN, START, STOP, MASK, DECODE = 0, 100, 101, 102, 103, 30522
QUESTIONS, ANSWER_TOKENS = 8, 5
ANSWERS, READ_WHOLE = 3128, 128
IMAGES, TEXTS, TOGETHER = 1000, 5000, 128
LONGEST = 35
"""Tokens that LAVIS pads every text of retrieval to."""
SLICE = 32
"""Pairs of image and text that are measured."""


@dataclass(frozen=True)
class Taken:
    """One call: seconds on the clock and of the CPU, and what came out."""

    wall: float
    cpu: float
    result: Any


@dataclass(frozen=True)
class Figures:
    """What all ways took in a row of the table, round by round."""

    name: str
    taken: Mapping[str, Sequence[Taken]]

    def ratio(self, way: str, of: str) -> float:
        """Times as fast as the peer, by the field `of` of `Taken`."""
        pairs = zip(self.taken[PEER], self.taken[way], strict=True)
        return statistics.median(getattr(theirs, of) / getattr(own, of) for theirs, own in pairs)

    def seconds(self, way: str) -> float:
        return statistics.median(one.wall for one in self.taken[way])

    def same(self, way: str) -> tuple[int, int]:
        """Results that are the peer's, and all."""
        theirs = [text for one in self.taken[PEER] for text in one.result]
        own = [text for one in self.taken[way] for text in one.result]
        return sum(a == b for a, b in zip(theirs, own, strict=True)), len(own)

    def line(self) -> str:
        shown = [f"| {self.name} | {self.seconds(PEER):.2f} |"]
        for way in (FLOAT32, INT8):
            equal, count = self.same(way)
            shown.append(
                f" {self.seconds(way):.3f} | **{self.ratio(way, 'wall'):.2f}** | {self.ratio(way, 'cpu'):.2f} |"
                f" {equal} of {count} |"
            )
        return "".join(shown)

    def rows(self) -> list[Row]:
        peer = self.seconds(PEER)
        return [
            Row(f"{self.name}, {way}", self.ratio(way, "wall"), ours=self.seconds(way), theirs=peer)
            for way in (FLOAT32, INT8)
        ]


HEAD = (
    "| What | Peer, s | Float32, s | Times as fast | CPU time | Same | Int8, s | Times as fast | CPU time | Same |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def take_turns(name: str, ways: Mapping[str, Callable[[int], Any]], rounds: int) -> Figures:
    """Each way once in each round, which has a number."""
    taken: dict[str, list[Taken]] = {way: [] for way in ways}
    for number in range(rounds + WARM):
        for way, work in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            with torch.inference_mode():
                result = work(number)
            one = Taken(time.perf_counter() - wall, time.process_time() - cpu, result)
            if number >= WARM:
                taken[way].append(one)
    return Figures(name, taken)


@dataclass(frozen=True)
class Models:
    """One BLIP three times: transformers', and ours in float32 and int8."""

    theirs: Any
    float32: Model
    int8: Model
    processor: Any
    vocabulary: list[str]

    def pixels(self, image: Image.Image) -> Tensor:
        found: Tensor = self.processor(image, return_tensors="pt")["pixel_values"]
        return found

    def ids(self, text: str) -> list[int]:
        return [START, *(self.vocabulary.index(word) for word in text.split()), STOP]

    def texts(self, rows: Tensor, tokens: int) -> list[str]:
        """The last tokens of each row as one text."""
        return ["".join(self.vocabulary[index] for index in row[-tokens:]) for row in rows.tolist()]

    def settle(self, work: Callable[[Model], object], times: int) -> None:
        """Do it until int8 layers are packed, as in a program that does it often."""
        for _ in range(times):
            self.int8.image_cache.clear()
            work(self.int8)


def vocabulary() -> list[str]:
    """As many words as BERT has, its special tokens at their places."""
    words = [f"unused{number}" for number in range(DECODE)]
    for place, word in {PAD: "[PAD]", UNKNOWN: "[UNK]", START: "[CLS]", STOP: "[SEP]", MASK: "[MASK]"}.items():
        words[place] = word
    words[1000 : 1000 + len(PROMPT.split())] = PROMPT.split()
    return [*words, "[DEC]", "[ENC]"]


def make(size: Size, task: Task, side: int) -> Models:
    """Random weights of an official size, for images of `side` pixels."""
    torch.manual_seed(0)
    config = blip_config(size, task, side)
    theirs = CLASSES[task](transformers_config(size, side)).eval()
    with torch.device("meta"):
        network = BlipNetwork(config)
    state = layout_of(config, TRANSFORMERS_PARTS).to_ours(theirs.state_dict())
    if "temperature" in network.state_dict():
        state["temperature"] = torch.tensor(0.07)
    network.load_state_dict(state, assign=True)
    words = vocabulary()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "vocab.txt").write_text("\n".join(words[:DECODE]) + "\n", encoding="utf-8")
        defaults = read_defaults(GENERATION, place)
        made = assemble(task, network, ImageTransform(side), place, PromptTemplates(**PROMPTS), defaults)
    small = copy.deepcopy(network)
    quantize(small, 8)
    processor: Any = transformers.BlipImageProcessor(size={"height": side, "width": side})
    return Models(theirs, placed(made, network), placed(made, small), processor, words)


def placed(parts: ModelParts[BlipNetwork], network: BlipNetwork) -> Model:
    return model_of(replace(parts, network=network), choose_placement("cpu", "float32"))


def transformers_config(size: Size, side: int) -> Any:
    vision = blip_config(size, "caption", side).vision
    return transformers.BlipConfig(
        vision_config={
            "hidden_size": vision.width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.num_heads,
            "intermediate_size": vision.mlp_width,
            "image_size": side,
            "layer_norm_eps": vision.layer_norm_eps,
        },
        text_config={
            "encoder_hidden_size": vision.width,
            "num_attention_heads": 12,
            "bos_token_id": DECODE,
            "sep_token_id": STOP,
            "eos_token_id": STOP,
            "pad_token_id": PAD,
        },
        image_text_hidden_size=256,
    )


def photo(number: int) -> Image.Image:
    return Image.effect_noise((640, 480), 60 + number).convert("RGB")


def captions(options: argparse.Namespace) -> list[Figures]:
    found = []
    for size in options.sizes:
        models = make(size, "caption", 384)
        models.settle(lambda model: caption(model, 0, 3, max(options.tokens)), 8)
        for beams in (3, 5):
            for tokens in options.tokens:
                found.append(captions_of(models, size, beams, tokens, options.rounds))
                print(found[-1].line(), flush=True)
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
    }
    return take_turns(f"{size}: caption, beam {beams}, {tokens} tokens", ways, rounds)


def caption(model: Model, number: int, beams: int, tokens: int) -> list[str]:
    found = model.caption(
        photo(number), num_beams=beams, max_new_tokens=tokens, min_new_tokens=tokens, details=True
    )
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
    rng = random.Random(2)
    answers = [
        " ".join(f"unused{rng.randrange(2000, 9000)}" for _ in range(rng.choice((1, 1, 1, 2, 3)))) for _ in range(ANSWERS)
    ]
    asked = question_texts()
    found = []
    for count in (1, 5):

        def peer(number: int, count: int = count) -> list[str]:
            pixels = models.pixels(photo(number))
            return [lavis_rank(models, pixels, text, answers) for text in asked[:count]]

        def ours(model: Model, number: int, count: int = count) -> list[str]:
            rows = model.rank_answers(photo(number), asked[:count], answers, first=READ_WHOLE, template="{question}")
            return [row[0].text for row in rows]

        models.settle(lambda model: ours(model, 0), 4)  # noqa: B023
        ways = {
            PEER: peer,
            FLOAT32: lambda number: ours(models.float32, number),  # noqa: B023
            INT8: lambda number: ours(models.int8, number),  # noqa: B023
        }
        name = f"base, 480 px: {count} question{'s' if count > 1 else ''}, {ANSWERS:,} answers, {READ_WHOLE} read whole"
        found.append(take_turns(name, ways, options.rounds))
        print(found[-1].line(), flush=True)
    return found


def lavis_rank(models: Models, pixels: Tensor, question: str, answers: Sequence[str]) -> str:
    """The best answer as LAVIS finds it: the image and the question once for each pair of them, all answers' first
    tokens, then the likeliest answers whole, each with a copy of the question's states, by smoothed loss."""
    image = models.theirs.vision_model(pixels)[0]
    ids = torch.tensor([[DECODE + 1, *models.ids(question.replace("?", " [UNK]"))[1:]]])
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
    theirs = models.theirs
    rng = random.Random(3)
    texts = [
        " ".join(f"unused{rng.randrange(2000, 9000)}" for _ in range(max(6, round(rng.gauss(11, 2.5)))))
        for _ in range(SLICE)
    ]
    rows = [models.ids(text) for text in texts]
    ids = torch.tensor([[*row, *[PAD] * (LONGEST - len(row))] for row in rows])
    mask = (ids != PAD).long()
    with_image = torch.cat([torch.full_like(ids[:, :1], DECODE + 1), ids[:, 1:]], dim=1)
    pixels = models.pixels(photo(0))
    with torch.inference_mode():
        seen = theirs.vision_model(pixels)[0]
    shared = {FLOAT32: models.float32, INT8: models.int8}
    matchers = {way: matcher_of(model, "match") for way, model in shared.items()}
    read = {way: matcher.read(texts) for way, matcher in matchers.items()}

    def images_of(model: Model) -> Callable[[int], list[str]]:
        return lambda number: [str(len(model.encode_image(photo(number)).features))]

    def their_images(number: int) -> list[str]:
        return [str(theirs.vision_model(models.pixels(photo(number)))[0].shape[1])]

    def their_texts(number: int) -> list[str]:
        states = theirs.text_encoder(input_ids=ids, attention_mask=mask)[0]
        return order(F.normalize(theirs.text_proj(states[:, 0]), dim=-1)[:, 0])

    def texts_of(way: str) -> Callable[[int], list[str]]:
        return lambda number: order(matchers[way].read(texts).embeds[:, 0])

    def memory_of(way: str) -> Callable[[int], list[str]]:
        def work(number: int) -> list[str]:
            memories[way] = matchers[way].remember(seen)
            return ["-"]

        return work

    memories: dict[str, Any] = {}
    everything = torch.arange(SLICE)[None]

    def their_pairs(number: int) -> list[str]:
        return order(lavis_pairs(theirs, seen, with_image, mask))

    def pairs_of(way: str) -> Callable[[int], list[str]]:
        return lambda number: order(matchers[way].match(memories[way], read[way], everything)[0, :, 1])

    # One layer has seen as many rows as pack it only after several batches of texts.
    models.settle(lambda model: model.match(photo(0), texts), 8)
    own = {way: memory_of(way) for way in shared}
    return [
        take_turns("an image", {PEER: their_images, **{way: images_of(shared[way]) for way in shared}}, options.rounds),
        take_turns(f"{SLICE} texts alone", {PEER: their_texts, **{way: texts_of(way) for way in shared}}, options.rounds),
        take_turns("keys and values of an image", {PEER: lambda number: ["-"], **own}, options.rounds),
        take_turns(
            f"{SLICE} texts with an image", {PEER: their_pairs, **{way: pairs_of(way) for way in shared}}, options.rounds
        ),
    ]


def order(scores: Tensor) -> list[str]:
    """What comes first."""
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
import openblip, resource, sys
from PIL import Image
model = openblip.load(sys.argv[1], dtype=sys.argv[2])
image = Image.effect_noise((640, 480), 50).convert("RGB")
model.caption(image, num_beams=3, max_new_tokens=20, min_new_tokens=20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
THEIRS_LOADED = """
import resource, sys, torch, transformers
from PIL import Image
transformers.logging.disable_progress_bar()
model = transformers.BlipForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
processor = transformers.AutoProcessor.from_pretrained(sys.argv[1])
image = Image.effect_noise((640, 480), 50).convert("RGB")
inputs = processor(images=image, text="a picture of", return_tensors="pt")
model.generate(**inputs, num_beams=3, max_new_tokens=20, min_new_tokens=20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory() -> list[Row]:
    """Prints a table of its own."""
    with tempfile.TemporaryDirectory() as folder:
        made = make("large", "caption", 384).float32.parts
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
    parser.add_argument("--tokens", nargs="+", type=int, default=[10, 20], help="of captions")
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
    for name, measure in {"caption": captions, "questions": questions, "rank": rankings}.items():
        if name in options.rows:
            rows += [row for figures in measure(options) for row in figures.rows()]
    if "retrieval" in options.rows:
        parts = retrieval(options)
        whole = whole_retrieval(parts)
        for figures in (*parts, whole):
            print(figures.line(), flush=True)
        rows += whole.rows()
    if "memory" in options.rows:
        rows += memory()
    finish(rows, options.json, settings)


if __name__ == "__main__":
    main()
