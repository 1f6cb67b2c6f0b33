"""How often quantized weights would choose the next token that float32 chooses, and how far their chances are apart.

    python benchmarks/real_size.py opt blip2-random/
    python benchmarks/agreement.py blip2-random/ [--dtypes int8 int4] [--images 8] [--tokens 20] [--threads 2]

Every model looks at the same images for itself and reads the same texts behind them, so that no choice changes what
is read later: float32's own greedy text, and one of random tokens. The model may be "mini" or any other, too. One is
in memory at a time, float32 first. KL is of float32's distribution from the other's, in nats a token.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import dataclass

import torch
from PIL import Image
from results import Row, add_json_option, finish
from torch import Tensor

import openblip
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.models.model import Model

WAYS = ("its greedy text", "random text")


@dataclass
class Text:
    """What is read behind an image, and float32's log-probabilities [L, vocabulary] of each of its tokens."""

    ids: Tensor
    expected: Tensor


def noise_images(count: int) -> list[Image.Image]:
    return [Image.effect_noise((320, 240), 40 + 10 * number).convert("RGB") for number in range(count)]


def prompt_of(model: Model, image: Image.Image) -> Tensor:
    """The visual prompt and what begins a text: [T, token width]."""
    ids = torch.tensor(model.parts.prompt_ids(model.parts.prompts.caption), device=model.placement.device)
    visual = model.network.visual_prompt(model.encode_image(image).features[None])[0]
    return torch.cat([visual, model.network.language_model.embed(ids)])


def log_probs(model: Model, prompt: Tensor, ids: Tensor) -> Tensor:
    """Of every token in the place of each of `ids` [L], given those before: [L, vocabulary]."""
    language = model.network.language_model
    hidden = language.hidden_before(prompt[None], None, ids[None])
    return language.logits(hidden)[0].float().log_softmax(dim=1)


@torch.inference_mode()
def texts_of(model: Model, images: list[Image.Image], tokens: int) -> list[dict[str, Text]]:
    """For each image the texts to be read, with float32's opinion of them."""
    generator = torch.Generator().manual_seed(0)
    options = GenerationOptions(max_new_tokens=tokens, min_new_tokens=tokens, stop_ids=(model.parts.stop_id,))
    found = []
    for image in images:
        prompt = prompt_of(model, image)
        greedy = torch.tensor(generate(model.network.language_model, [prompt], options)[0][0].ids)
        words = model.parts.require_words().vocab_size
        drawn = torch.randint(words, (tokens,), generator=generator)
        texts = zip(WAYS, (greedy, drawn), strict=True)
        found.append({way: Text(ids, log_probs(model, prompt, ids)) for way, ids in texts})
    return found


@torch.inference_mode()
def compare(model: Model, images: list[Image.Image], texts: list[dict[str, Text]], way: str) -> tuple[float, float]:
    """The share of tokens that both would choose, and the mean divergence."""
    same, divergence = [], []
    for image, read in zip(images, texts, strict=True):
        text = read[way]
        found = log_probs(model, prompt_of(model, image), text.ids)
        same.append(found.argmax(dim=1) == text.expected.argmax(dim=1))
        divergence.append((text.expected.exp() * (text.expected - found)).sum(dim=1))
    return torch.cat(same).double().mean().item(), torch.cat(divergence).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or a name")
    parser.add_argument("--dtypes", nargs="+", default=["int8", "int4"])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = noise_images(options.images)
    model = openblip.load(options.model, device="cpu", dtype="float32")
    texts = texts_of(model, images, options.tokens)
    del model
    rows = []
    print(f"{options.images} images, {options.tokens} tokens each, torch {torch.__version__}\n")
    print("| weights | along | the same next token | mean KL, nats |\n|---|---|---|---|")
    for dtype in options.dtypes:
        gc.collect()
        model = openblip.load(options.model, device="cpu", dtype=dtype)
        for way in WAYS:
            same, divergence = compare(model, images, texts, way)
            print(f"| {dtype} | {way} | {same:.1%} | {divergence:.2e} |", flush=True)
            rows.append(Row(f"{dtype}, along {way}", 100 * same, "% the same next token"))
            rows.append(Row(f"KL of {dtype}, along {way}", divergence, "nats", less_is_better=True))
        del model
    finish(rows, options.json, f"{options.images} images, {options.tokens} tokens")


if __name__ == "__main__":
    main()
