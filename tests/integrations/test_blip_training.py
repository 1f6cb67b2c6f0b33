"""transformers' Trainer and peft with our BLIPs: losses, adapters and folders as with its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

import openblip

from .blip_theirs import Pair, write_pair

STEPS = 4
TEXTS = ["a picture of a dog", "two children play with the red ball", "what is this?", "a cat on the beach"]
TASKS = ("caption", "answer")


@pytest.fixture(scope="module", params=TASKS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """With weights so small that steps do not blow rounding up."""
    made = write_pair(request.param, tmp_path_factory.mktemp(request.param), label_smoothing=0.1)
    weights = made.folder / "model.safetensors"
    save_file({name: tensor * 0.3 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    return made


@pytest.fixture(scope="module")
def rows(pair: Pair) -> list[dict[str, Tensor]]:
    found = []
    for number, text in enumerate(TEXTS * 2, start=1):
        image = Image.effect_noise((30, 30), 60 * number).convert("RGB")
        inputs = pair.processor(images=image, text=text, return_tensors="pt", padding="max_length", max_length=16)
        row = {name: tensor[0] for name, tensor in inputs.items()}
        row["labels"] = row["input_ids"].masked_fill(row["attention_mask"] == 0, -100)
        if pair.task == "answer":
            # Questions of one length: theirs reads the padding of others.
            asked = pair.processor(text="how many dog ?", return_tensors="pt")
            row |= {name: tensor[0] for name, tensor in asked.items()}
            row["labels"] = row["labels"].clamp(min=0)
        found.append(row)
    return found


def train(model: Any, rows: list[dict[str, Tensor]], folder: Path, **settings: Any) -> tuple[Trainer, list[float]]:
    settings = {"optim": "sgd", "learning_rate": 1e-2, "max_steps": STEPS, **settings}
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_steps=STEPS,
        seed=5,
        **settings,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return trainer, [value for entry in history for value in (entry["loss"], entry["grad_norm"])]


SETTINGS: dict[str, dict[str, Any]] = {
    "accumulated and decayed": {"gradient_accumulation_steps": 2, "weight_decay": 0.5},
    "checkpointed": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_losses_are_theirs(pair: Pair, rows: list[dict[str, Tensor]], settings: str, tmp_path: Path) -> None:
    theirs, expected = train(
        pair.their_class.from_pretrained(pair.folder), rows, tmp_path / "theirs", **SETTINGS[settings]
    )
    trainer, found = train(pair.our_class.from_pretrained(pair.folder), rows, tmp_path / "ours", **SETTINGS[settings])
    assert len(found) == 2 * STEPS and found == pytest.approx(expected, rel=1e-4)
    assert trainer.state.total_flos == pytest.approx(theirs.state.total_flos, rel=0.01)


def test_weights_without_decay_are_theirs(pair: Pair, tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    counts = []
    for kind in (pair.our_class, pair.their_class):
        model = kind.from_pretrained(pair.folder)
        decayed = set(Trainer(model=model, args=arguments).get_decay_parameter_names(model))
        counts.append(sum(tensor.numel() for name, tensor in model.named_parameters() if name in decayed))
    assert counts[0] == counts[1] > 10_000


@pytest.mark.parametrize("saved_by", ["ours", "theirs"])
def test_folders_of_a_trainer_load_everywhere(
    pair: Pair, rows: list[dict[str, Tensor]], image_paths: list[Path], saved_by: str, tmp_path: Path
) -> None:
    kind = pair.our_class if saved_by == "ours" else pair.their_class
    trainer, _ = train(kind.from_pretrained(pair.folder), rows, tmp_path)
    batch = {name: tensor[None] for name, tensor in rows[0].items()}
    expected = trainer.model.eval()(**batch).loss
    last = tmp_path / f"checkpoint-{STEPS}"
    for other in (pair.our_class, pair.their_class):
        found = other.from_pretrained(last).eval()
        assert found(**batch).loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert found.config.text_config.label_smoothing == 0.1
    words = None if saved_by == "ours" else pair.folder
    model = openblip.load(last, tokenizer=words, device="cpu", dtype="float32")
    assert isinstance(model.generate(image_paths[0], "a picture of"), str)
    # One without words goes on being trained and saved.
    train(pair.our_class.from_pretrained(last), rows, tmp_path / "again")
    assert (tmp_path / "again" / f"checkpoint-{STEPS}" / "config.json").is_file()
    assert pair.their_class.from_pretrained(tmp_path / "again" / f"checkpoint-{STEPS}") is not None


def test_a_trainer_generates(pair: Pair, rows: list[dict[str, Tensor]], tmp_path: Path) -> None:
    """Theirs fails: its config has no id to pad with."""
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        predict_with_generate=True,
        generation_max_length=24,
        per_device_eval_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model = pair.our_class.from_pretrained(pair.folder)
    found = Seq2SeqTrainer(model=model, args=arguments, eval_dataset=rows[:3]).predict(rows[:3])
    for row, ids in zip(rows, found.predictions.tolist(), strict=False):
        given = {name: tensor[None] for name, tensor in row.items() if name != "labels"}
        expected = model.generate(**given, max_length=24)[0].tolist()
        assert [token for token in ids if token] == [token for token in expected if token]
    assert found.metrics["test_loss"] > 0


TARGETS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["query", "value", "qkv"]},
    "expression": {"target_modules": r".*text_decoder.*\.(query|key|dense)", "use_dora": True},
}


@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_of_either_library(pair: Pair, rows: list[dict[str, Tensor]], targets: str, tmp_path: Path) -> None:
    models: list[Any] = []
    for kind in (pair.our_class, pair.their_class):
        bare = kind.from_pretrained(pair.folder).double()
        models.append(peft.get_peft_model(bare, peft.LoraConfig(r=4, lora_alpha=8, **TARGETS[targets])).eval())
    learning = [{name: one.shape for name, one in model.named_parameters() if one.requires_grad} for model in models]
    assert learning[0] == learning[1] != {}
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in models[1].parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape) * 0.05
    models[1].save_pretrained(tmp_path / "theirs")
    bare = pair.our_class.from_pretrained(pair.folder).double()
    here = peft.PeftModel.from_pretrained(bare, tmp_path / "theirs", is_trainable=True).eval()
    batch = {name: torch.stack([row[name] for row in rows[:2]]) for name in rows[0]}
    batch["pixel_values"] = batch["pixel_values"].double()
    losses = [model(**batch).loss for model in (here, models[1])]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for loss in losses:
        loss.backward()
    gradients = {name: one.grad for name, one in models[1].named_parameters() if one.requires_grad}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in here.named_parameters():
        if parameter.requires_grad:
            assert float((parameter.grad - gradients[name]).abs().max()) <= 2e-5 * largest, name
    plain = pair.our_class.from_pretrained(pair.folder).double()
    assert plain(**batch).loss.item() != pytest.approx(losses[0].item(), rel=1e-4)
    merged = here.merge_and_unload()
    assert merged(**batch).loss.item() == pytest.approx(losses[1].item(), rel=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    reread = pair.their_class.from_pretrained(tmp_path / "merged", dtype=torch.float64).eval()
    assert reread(**batch).loss.item() == pytest.approx(losses[1].item(), rel=1e-5)
