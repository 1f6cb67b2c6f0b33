"""Quality of a model on the data sets that `mini` was developed with: captions, retrieval, questions.

    python benchmarks/mini_quality.py --data DATA [--model mini] [--limit 100] [--json scores.json]

DATA holds flickr8k/captions.jsonl (split val: Karpathy's 1,000), coco/vqa.jsonl (COCO-QA pairs; every tenth
image by hash of its name is held out) and daquar/vqa.jsonl (every fifth). None of these images was trained on.
"plain" are questions that people ask of any photo, made from the captions of Flickr8k's images by rule.

`--seen` asks the same of what it was trained on: the gap tells how much is known by heart.

Who chooses among models by their captions does so on `--half even` and reports `--half odd`, which had no part in it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.progress import track

from openblip.data.plain_questions import plain_questions
from openblip.data.sources.annotations import Captioned, Questioned, is_held_out, read_captions, read_questions
from openblip.evaluation.metrics.accuracy import exact_match
from openblip.evaluation.metrics.captions import score_captions
from openblip.evaluation.metrics.recall import score_retrieval
from openblip.generation.repeated_words import FUNCTION_WORDS
from openblip.models.load import load
from openblip.models.model import Model
from openblip.text import clean_caption

MARKS = {
    "captions": "constant caption 0.09 / 0.09; consensus of the 30 nearest training photos 0.419 / 0.151; "
    "human 0.789 / 0.209",
    "coco-qa": "commonest answer of each kind 7 %",
    "daquar": "commonest answer 5 %",
    "plain": "commonest answer of each kind {commonest:.1%}",
}
PARTS = ("captions", "retrieval", "coco-qa", "daquar", "plain")
HALVES = {"even": 0, "odd": 1}


def caption_scores(model: Model, rows: Sequence[Captioned], no_repeat_words: bool | None) -> dict[str, Any]:
    images = [str(row.image) for row in rows]
    found = model.caption_many(images, batch_size=16, no_repeat_words=no_repeat_words)
    captions = {
        row.image.name: captioned.text
        for row, captioned in track(zip(rows, found, strict=True), "captions", total=len(rows))
    }
    scores = score_captions(captions, {row.image.name: row.captions for row in rows})
    repeating = sum(map(repeats_a_word, captions.values()))
    return {**asdict(scores), "repeating": repeating, "captions": captions}


def repeats_a_word(caption: str) -> bool:
    """Whether a content word occurs twice in a caption."""
    words = [word.strip(".,") for word in caption.lower().split()]
    return any(count > 1 and word not in FUNCTION_WORDS for word, count in Counter(words).items())


def retrieval_scores(model: Model, rows: Sequence[Captioned], rerank: int) -> dict[str, Any]:
    texts = [caption for row in rows for caption in row.captions]
    owners = [index for index, row in enumerate(rows) for _ in row.captions]
    images = track([str(row.image) for row in rows], "images, and texts for each")
    rankings = model.rank_both(images, texts, rerank=rerank, batch_size=16)
    return asdict(score_retrieval(rankings, owners))


def answer_scores(model: Model, rows: Sequence[Questioned]) -> dict[str, Any]:
    ordered = sorted(rows, key=lambda row: row.image)
    answers: list[str] = []
    groups = [list(group) for _, group in groupby(ordered, key=lambda row: row.image)]
    for group in track(groups, "questions"):
        answers += model.ask(str(group[0].image), [row.question for row in group])
    said = [
        {"image": row.image.name, "question": row.question, "truth": row.answer, "answer": answer}
        for row, answer in zip(ordered, answers, strict=True)
    ]
    return {"accuracy": exact_match(ordered, answers), "count": len(ordered), "answers": said}


def plain_rows(rows: Sequence[Captioned]) -> list[Questioned]:
    """The questions that the rules of training make of an image's captions, of images it has not seen."""
    return [
        Questioned(row.image, question.question, (question.answer,), question.kind)
        for row in rows
        for question in plain_questions([clean_caption(caption) for caption in row.captions])
    ]


def commonest_share(rows: Sequence[Questioned]) -> float:
    """How many would be right if each kind of question always got its commonest answer."""
    answers: dict[str, Counter[str]] = {}
    for row in rows:
        answers.setdefault(row.kind, Counter())[row.answer] += 1
    return sum(counts.most_common(1)[0][1] for counts in answers.values()) / max(1, len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k, coco and daquar")
    parser.add_argument("--model", default="mini", help="name or folder")
    parser.add_argument("--dtype", default="float32", help="float32, int8 or int4")
    parser.add_argument("--limit", type=int, help="only the first so many images of each set")
    parser.add_argument("--rerank", type=int, default=16, help="candidates a query that ITM looks at")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--half", choices=HALVES, help="of Flickr8k's images those in even or in odd places")
    parser.add_argument("--repeat-words", action="store_true", help="captions without no_repeat_words")
    parser.add_argument("--seen", action="store_true", help="the training part instead: what is known by heart")
    parser.add_argument("--json", type=Path, help="write scores and every output here")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"no data at {options.data}: give --data a folder with flickr8k, coco and daquar")
    model = load(options.model, dtype=options.dtype)
    wanted = options.only or PARTS
    split, part = ("train", "seen in training") if options.seen else ("val", "held out")
    scores: dict[str, Any] = {}
    captioned = read_captions(options.data / "flickr8k/captions.jsonl", split)
    if options.half:
        captioned = captioned[HALVES[options.half] :: 2]
    captioned = captioned[: options.limit]
    if "captions" in wanted:
        scores["captions"] = caption_scores(model, captioned, False if options.repeat_words else None)
    if "retrieval" in wanted:
        scores["retrieval"] = retrieval_scores(model, captioned, options.rerank)
    for name, path, one_in in (("coco-qa", "coco/vqa.jsonl", 10), ("daquar", "daquar/vqa.jsonl", 5)):
        if name in wanted:
            rows = [
                row for row in read_questions(options.data / path) if is_held_out(row.image, one_in) != options.seen
            ]
            scores[name] = answer_scores(model, rows[: options.limit])
    if "plain" in wanted:
        rows = plain_rows(captioned)
        scores["plain"] = {**answer_scores(model, rows), "commonest": commonest_share(rows)}
    print(table(model.name, scores, len(captioned), split, part))
    if options.json:
        options.json.write_text(json.dumps(scores, indent=1))


def table(name: str, scores: dict[str, Any], images: int, split: str, part: str) -> str:
    lines = [f"| {name} | score | for comparison |", "|---|---|---|"]
    if "captions" in scores:
        found = scores["captions"]
        words = "PTB tokenizer" if found["official"] else "simple tokenizer, unofficial"
        lines.append(
            f"| Flickr8k {split} ({images}), beam search: CIDEr / BLEU-4 ({words}) | "
            f"{found['cider']:.3f} / {found['bleu'][3]:.3f} | {MARKS['captions']} |"
        )
        lines.append(f"| of these captions, those with a content word twice | {found['repeating']} | |")
    if "retrieval" in scores:
        for direction in ("text_to_image", "image_to_text"):
            found = scores["retrieval"][direction]
            lines.append(
                f"| Flickr8k {split} {direction.replace('_', ' ')} R@1 / 5 / 10 | "
                f"{found['at_1']:.1%} / {found['at_5']:.1%} / {found['at_10']:.1%} | chance {1 / images:.1%} |"
            )
    for key in ("coco-qa", "daquar", "plain"):
        if key in scores:
            found = scores[key]
            kinds = ", ".join(f"{kind} {value:.1%}" for kind, value in found["accuracy"].items() if kind != "all")
            shown = f"{found['accuracy']['all']:.1%}" + (f" ({kinds})" if kinds else "")
            mark = MARKS[key].format_map(found)
            lines.append(f"| {key} {part} ({found['count']} questions), exact | {shown} | {mark} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
