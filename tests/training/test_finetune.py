"""Fine-tuning on one's own table, adapters, and evaluation while a run goes."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file

import openblip
from openblip.checkpoints.openblip.folder import save_native
from openblip.data.sources.annotations import is_held_out
from openblip.data.sources.own import OwnData
from openblip.errors import OpenBlipError
from openblip.training.finetune import FinetuneOptions, finetuning_recipe
from openblip.training.recipe import load_recipe
from openblip.training.run import train
from tests.checkpoints.clip_theirs import write_clip
from tests.models.blip_models import small_parts

COLOURS = {"red": (220, 30, 30), "blue": (40, 60, 220)}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Forty images in two colours, with a text each and a question."""
    (tmp_path / "photos").mkdir()
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        for number in range(40):
            word, colour = list(COLOURS.items())[number % 2]
            Image.new("RGB", (64, 64), tuple(value + number % 7 for value in colour)).save(
                tmp_path / f"photos/{number:02d}.png"
            )
            writer.writerow([f"photos/{number:02d}.png", f"  A {word}  ball. "])
    return tmp_path / "pairs.csv"


def questions(table: Path) -> Path:
    path = table.with_name("questions.jsonl")
    with table.open(newline="") as file:
        rows = [
            {"image": row["file"], "question": "what color is the ball?", "answer": row["caption"].split()[1]}
            for row in csv.DictReader(file)
        ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_table_is_all_there_is_to_say(table: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    recipe = finetuning_recipe(FinetuneOptions(str(tiny_model_folder), OwnData(table), tmp_path / "new"))
    assert recipe.data[0].held_out == 10 and recipe.evaluation.data == recipe.data[0]
    assert recipe.train_decoder and recipe.lora is None and recipe.mixture.questions == 0
    asked = finetuning_recipe(
        FinetuneOptions(str(tiny_model_folder), OwnData(questions(table)), tmp_path / "new", lora=True)
    )
    assert asked.lora is not None and not asked.train_decoder and asked.mixture.questions == 1
    # What --dry-run prints is a recipe that says the same.
    written = tmp_path / "recipe.yaml"
    written.write_text(openblip_recipe(asked))
    assert asdict(load_recipe(written)) == asdict(asked)


def test_enough_is_held_out_to_tell_better_from_worse(table: Path, tiny_model_folder: Path) -> None:
    """However the hashes of names fall: CIDEr of a single image is 0, so that nothing learnt would ever be kept."""
    rows = table.read_text().splitlines()
    unlucky = [row for row in rows[1:] if not is_held_out(Path(row.partition(",")[0]), 10)]
    assert len(unlucky) >= 30
    table.write_text("\n".join([rows[0], *unlucky]))
    recipe = finetuning_recipe(FinetuneOptions(str(tiny_model_folder), OwnData(table), table.parent / "new"))
    assert recipe.evaluation.data is not None
    images = [Path(row.partition(",")[0]) for row in unlucky]
    assert 3 <= sum(is_held_out(image, recipe.data[0].held_out) for image in images) < len(images) / 3
    table.write_text("\n".join([rows[0], *unlucky[:29]]))
    recipe = finetuning_recipe(FinetuneOptions(str(tiny_model_folder), OwnData(table), table.parent / "new"))
    assert recipe.evaluation.data is None and not recipe.data[0].held_out


def openblip_recipe(recipe: object) -> str:
    from openblip.recipes import write_recipe

    return write_recipe(recipe)


def test_captions_change_and_the_best_weights_are_kept(
    table: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("openblip.training.monitor.progress.EVERY_SECONDS", 0.0)
    image = tmp_path / "photos/00.png"
    before = openblip.load(tiny_model_folder, device="cpu").caption(image)
    wishes = FinetuneOptions(
        str(tiny_model_folder), OwnData(table), tmp_path / "new", epochs=15, batch_size=6, rate=5e-3
    )
    folder = train(finetuning_recipe(wishes))
    after = openblip.load(folder, device="cpu").caption(image)
    # Texts are learnt as they were written, but for their spaces.
    assert after == "A red ball." != before
    shown = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert shown[0]["prediction"] == openblip.load(tiny_model_folder, device="cpu").caption(
        tmp_path / "photos" / Path(shown[0]["image"]).name, num_beams=3
    )
    assert shown[-1]["prediction"] in ("A red ball.", "A blue ball.")
    told = capsys.readouterr().out.splitlines()
    assert any("cider" in line for line in told)
    # Where there is no terminal, as in the log of a cluster, lines tell how far it is.
    assert re.fullmatch(r"step \d+ of 90  epoch \d+  lm [\d.]+  [\d.]+ images/s", [x for x in told if "step" in x][-1])


def test_a_run_that_gets_worse_gives_back_what_it_was_given(
    table: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    wishes = FinetuneOptions(
        str(tiny_model_folder), OwnData(table), tmp_path / "good", epochs=15, batch_size=6, rate=5e-3
    )
    good = train(finetuning_recipe(wishes))
    recipe = finetuning_recipe(
        FinetuneOptions(str(good), OwnData(table), tmp_path / "worse", epochs=10, batch_size=6, rate=10.0)
    )
    recipe.optimizer.clip_norm = 1e9
    recipe.evaluation.every = 1
    worse = train(recipe)
    first, second = (load_file(folder / "model.safetensors") for folder in (good, worse))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with (worse / "curves.csv").open(newline="") as file:
        epochs = {int(row["epoch"]) for row in csv.DictReader(file)}
    assert len(epochs) == recipe.evaluation.patience < recipe.epochs
    # Started again, it knows that it is over.
    assert train(recipe) == worse


def test_adapters_are_all_that_a_run_with_lora_learns_and_leaves(
    table: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    wishes = FinetuneOptions(
        str(tiny_model_folder),
        OwnData(questions(table)),
        tmp_path / "lora",
        epochs=12,
        batch_size=6,
        rate=2e-2,
        lora=True,
    )
    folder = train(finetuning_recipe(wishes))
    assert (folder / "adapter_config.json").exists() and not (folder / "model.safetensors").exists()
    names = load_file(folder / "adapter_model.safetensors")
    assert all("lora_" in name for name in names) and any("language_model" in name for name in names)
    model = openblip.load(folder, device="cpu")
    answers = [
        model.ask(tmp_path / f"photos/{number:02d}.png", "what color is the ball?") for number in range(0, 40, 10)
    ]
    answers += [
        model.ask(tmp_path / f"photos/{number:02d}.png", "what color is the ball?") for number in range(1, 40, 10)
    ]
    assert answers == ["red"] * 4 + ["blue"] * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image\nphotos/00.png\n", "says nothing about its images"),
        ("image,caption\nphotos/00.png,a ball\n", "1 image|has 1 images to learn from"),
        ("picture,words\nphotos/00.png,a ball\n", "column"),
        ("image,caption\nphotos/00.png,\nphotos/01.png,a\nphotos/02.png,  \n", "has 1 images to learn from"),
        ("image,caption,image\na.png,a ball,b.png\n", "several columns 'image': give each a name of its own"),
    ],
)
def test_tables_that_teach_nothing(
    table: Path, tiny_model_folder: Path, tmp_path: Path, content: str, message: str
) -> None:
    table.write_text(content)
    with pytest.raises(OpenBlipError, match=message):
        finetuning_recipe(FinetuneOptions(str(tiny_model_folder), OwnData(table), tmp_path / "new"))


@pytest.mark.parametrize("rate", [float("nan"), -1.0, 0.0, float("inf")])
def test_rates_out_of_range(table: Path, tiny_model_folder: Path, tmp_path: Path, rate: float) -> None:
    with pytest.raises(OpenBlipError, match="learning rate is"):
        finetuning_recipe(FinetuneOptions(str(tiny_model_folder), OwnData(table), tmp_path / "new", rate=rate))


def test_a_metric_that_the_data_do_not_give_is_told_before_any_work(
    table: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    recipe = finetuning_recipe(FinetuneOptions(str(tiny_model_folder), OwnData(table), tmp_path / "new", epochs=1))
    recipe.evaluation.metric = "accuracy"
    recipe.init = "no-such-model"
    with pytest.raises(OpenBlipError, match=r"'accuracy': it is none of bleu_1"):
        train(recipe)
    assert not (tmp_path / "new").exists()


def test_a_model_that_does_not_write_is_refused(table: Path, tmp_path: Path) -> None:
    save_native(small_parts("embed", tmp_path), tmp_path / "blip")
    with pytest.raises(OpenBlipError, match="blip can neither caption nor answer, nor match images with texts"):
        finetuning_recipe(FinetuneOptions(str(tmp_path / "blip"), OwnData(table), tmp_path / "new"))


def test_a_blip_learns_what_it_does(table: Path, tmp_path: Path) -> None:
    asked = questions(table)
    for task, stage, targets in (
        ("caption", "caption", ["language_model"]),
        ("answer", "vqa", ["language_model", "text"]),
    ):
        save_native(small_parts(task, tmp_path), tmp_path / task)
        own, other = (table, asked) if task == "caption" else (asked, table)
        recipe = finetuning_recipe(FinetuneOptions(str(tmp_path / task), OwnData(own), tmp_path / "new", lora=True))
        assert recipe.stage.value == stage and recipe.lora is not None and recipe.lora.targets == targets
        with pytest.raises(OpenBlipError, match=r"has no (texts|questions with answers), from which .* learns"):
            finetuning_recipe(FinetuneOptions(str(tmp_path / task), OwnData(other), tmp_path / "new"))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("task", ["caption", "answer"])
def test_a_blip_says_what_it_has_learnt(task: str, lora: bool, table: Path, tmp_path: Path) -> None:
    save_native(small_parts(task, tmp_path), tmp_path / task)
    own = table if task == "caption" else questions(table)
    epochs, rate = (6, 1e-2) if lora else (28, 2e-3)
    wishes = FinetuneOptions(
        str(tmp_path / task), OwnData(own), tmp_path / "new", epochs=epochs, batch_size=6, rate=rate, lora=lora
    )
    recipe = finetuning_recipe(wishes)
    recipe.evaluation.patience, recipe.evaluation.every = 0, epochs  # random weights say nothing at all for long
    folder = train(recipe)
    model = openblip.load(folder, device="cpu")
    if lora:
        assert (folder / "adapter_config.json").exists() and not (folder / "model.safetensors").exists()
        with (folder / "curves.csv").open(newline="") as file:
            course = [float(row["lm"]) for row in csv.DictReader(file) if row["lm"]]
        assert course[-1] < 0.7 * course[0]
        return
    for number, word in ((0, "red"), (1, "blue")):
        image = tmp_path / f"photos/{number:02d}.png"
        said = model.caption(image) if task == "caption" else model.ask(image, "what color is the ball?")
        assert word in said


@pytest.mark.parametrize(("task", "stage"), [("match", "retrieval"), ("pretrain", "pretrain")])
def test_a_blip_that_matches_learns_pairs(table: Path, tmp_path: Path, task: str, stage: str) -> None:
    save_native(small_parts(task, tmp_path), tmp_path / task)
    options = FinetuneOptions(str(tmp_path / task), OwnData(table), tmp_path / "new", epochs=2)
    recipe = finetuning_recipe(options)
    assert (recipe.stage.value, recipe.optimizer.lr) == (stage, 1e-5)
    assert recipe.momentum.queue_size and recipe.momentum.queue_size % recipe.batch_size == 0
    model = openblip.load(str(train(recipe)), device="cpu", dtype="float32")
    assert "match" in model.abilities and ("caption" in model.abilities) == (task == "pretrain")
    recipe = finetuning_recipe(replace(options, lora=True, output=tmp_path / "adapter", rate=1e-2))
    recipe.evaluation.data, recipe.evaluation.patience = None, 0  # nothing better than the start would be thrown away
    folder = train(recipe)
    assert (folder / "adapter_config.json").exists() and not (folder / "model.safetensors").exists()
    copies = torch.load(folder / "checkpoint.pt", weights_only=True)["others"]
    names = {name for name in copies if name not in ("images", "texts", "ids", "place")}
    assert names and all(".lora_" in name for name in names)
    image = table.parent / "photos/00.png"
    odds = [
        openblip.load(str(recipe.init), adapter=each, device="cpu").match(image, "a red ball")
        for each in (None, folder)
    ]
    assert odds[0].itc != odds[1].itc and odds[0].itm != odds[1].itm


def claims(table: Path, pairs: bool) -> Path:
    """Sentences about the images of the table, half of them true; each of two images with `pairs`."""
    path = table.with_name("claims.csv")
    with table.open(newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    rows = [["left_image", "right_image", "sentence", "label"] if pairs else ["image", "sentence", "label"]]
    for number, name in enumerate(names):
        true = number // 2 % 2 == 0
        sentence = f"the ball is {list(COLOURS)[number % 2 if true else 1 - number % 2]}"
        label = str(true) if pairs else "entailment" if true else "contradiction"
        rows.append([name, names[-number], sentence, label] if pairs else [name, sentence, label])
    path.write_text("\n".join(map(",".join, rows)))
    return path


@pytest.mark.parametrize(("start", "stage"), [("match", "nlvr"), ("answer", "classify"), ("embed", "classify")])
def test_a_blip_learns_to_judge_sentences(table: Path, tmp_path: Path, start: str, stage: str) -> None:
    save_native(small_parts(start, tmp_path), tmp_path / start)
    own = claims(table, stage == "nlvr")
    wishes = FinetuneOptions(str(tmp_path / start), OwnData(own), tmp_path / "new", epochs=1)
    recipe = finetuning_recipe(wishes)
    assert (recipe.stage.value, recipe.train_vision, recipe.data[0].held_out) == (stage, True, 10)
    folder = train(recipe)
    model = openblip.load(folder, device="cpu")
    assert model.abilities == ("judge",) and (folder / "samples.jsonl").exists()
    # A model with the head goes on, whatever its classes are called.
    again = finetuning_recipe(replace(wishes, model=str(folder), output=tmp_path / "again"))
    assert again.stage is recipe.stage
    with pytest.raises(OpenBlipError, match="has no head for classes yet, and adapters are saved without one"):
        finetuning_recipe(replace(wishes, lora=True))
    adapters = finetuning_recipe(replace(again_wishes := replace(wishes, model=str(folder)), lora=True, rate=1e-2))
    adapters.output = str(tmp_path / "adapter")
    adapters.evaluation.data, adapters.evaluation.patience = (
        None,
        0,
    )  # or the run may find that what it began with is best
    assert adapters.lora is not None and adapters.lora.targets == ["text"] and not adapters.train_vision
    adapter = train(adapters)
    assert (adapter / "adapter_config.json").exists() and not (adapter / "model.safetensors").exists()
    image = tmp_path / "photos/00.png"
    judged = (image, image) if stage == "nlvr" else image
    both = [openblip.load(place, device="cpu").judge(judged, "the ball is red") for place in (folder, adapter)]
    assert both[0].probabilities != both[1].probabilities
    # A class that the head has not would need another one.
    own.write_text(own.read_text().replace("contradiction", "neither").replace("False", "Neither"))
    with pytest.raises(
        OpenBlipError, match="a new head for the classes of the data, which would not be saved with adapters"
    ):
        train(finetuning_recipe(replace(again_wishes, lora=True, output=tmp_path / "other")))
    own = claims(table, stage == "nlvr")
    if stage == "nlvr":
        alone = claims(table, pairs=False)
        with pytest.raises(OpenBlipError, match="cannot learn to judge sentences with one image each"):
            finetuning_recipe(replace(wishes, model=str(folder), data=OwnData(alone)))
    save_native(small_parts("caption", tmp_path), tmp_path / "caption")
    with pytest.raises(OpenBlipError, match="cannot learn to judge sentences"):
        finetuning_recipe(replace(wishes, model=str(tmp_path / "caption")))


def test_a_clip_learns_by_contrast(table: Path, tmp_path: Path) -> None:
    start = write_clip(tmp_path / "clip").folder
    wishes = FinetuneOptions(str(start), OwnData(table), tmp_path / "new", epochs=2)
    recipe = finetuning_recipe(wishes)
    assert (recipe.stage.value, recipe.optimizer.lr, recipe.train_vision) == ("contrast", 1e-5, True)
    folder = train(recipe)
    assert openblip.load(folder, device="cpu").match(tmp_path / "photos/00.png", "a red ball").itm is None
    assert (folder / "samples.jsonl").exists()
    with pytest.raises(OpenBlipError, match="has no texts, from which"):
        finetuning_recipe(replace(wishes, data=OwnData(questions(table))))
    adapters = finetuning_recipe(replace(wishes, lora=True, output=tmp_path / "adapter", rate=1e-2))
    assert adapters.lora is not None and adapters.lora.targets == ["text", "vision"] and not adapters.train_vision
    adapter = train(adapters)
    assert not (adapter / "model.safetensors").exists()
    ours = openblip.load(adapter, device="cpu", dtype="float32").embed_texts(["a red ball"])
    before = openblip.load(start, device="cpu", dtype="float32").embed_texts(["a red ball"])
    assert (ours - before).abs().max() > 1e-3
    theirs = PeftModel.from_pretrained(transformers.CLIPModel.from_pretrained(start), str(adapter))
    assert {name.rpartition(".lora_")[0] for name in theirs.state_dict() if ".lora_A" in name} and all(
        torch.equal(theirs.state_dict()[f"{name.removesuffix('.weight')}.default.weight"], value)
        for name, value in load_file(adapter / "adapter_model.safetensors").items()
    )
