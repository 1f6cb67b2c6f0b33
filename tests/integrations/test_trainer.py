"""transformers' Trainer with our model: what it learns with its own, and folders that everybody loads."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

import openblip
import openblip.integrations.transformers as ours
from openblip.checkpoints.loading import load_parts
from openblip.errors import CheckpointError, OptionError
from tests.checkpoints.theirs import Theirs

TOLERANCE = 1e-5
STEPS = 4
TEXTS = ["a dog runs on the beach\n", "two children play\n", "a\n", "a red ball\n"]
WORDS = {"tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def calm(writer: Theirs) -> Theirs:
    """The model without dropout, whose draws differ, and with weights so small that steps do not blow rounding up."""
    path = writer.folder / "config.json"
    content = json.loads(path.read_text())
    content["qformer_config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    content["text_config"] |= {"dropout": 0.0, "dropout_rate": 0.0}
    path.write_text(json.dumps(content))
    weights = writer.folder / "model.safetensors"
    save_file({name: tensor * 0.3 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    return writer


@pytest.fixture(scope="module")
def rows(calm: Theirs) -> list[dict[str, Tensor]]:
    """Eight images with texts of different lengths, padding and image tokens left out of the labels."""
    found = []
    # Padding behind an OPT's prompt is written on from in transformers.
    side = "left" if calm.model.config.use_decoder_only_language_model else "right"
    for number, text in enumerate(TEXTS * 2, start=1):
        image = Image.effect_noise((30, 30), 60 * number).convert("RGB")
        inputs = calm.processor(
            images=image, text=text, return_tensors="pt", padding="max_length", max_length=40, padding_side=side
        )
        row = {name: tensor[0] for name, tensor in inputs.items()}
        image_token = calm.model.config.image_token_index
        hidden = (row["attention_mask"] == 0) | (row["input_ids"] == image_token)
        row["labels"] = row["input_ids"].masked_fill(hidden, -100)
        if not calm.model.config.use_decoder_only_language_model:
            order = torch.argsort(hidden.int(), stable=True)  # what T5 says is padded behind
            row["labels"] = row["labels"][order]
        found.append(row)
    return found


def train(model: Any, rows: list[dict[str, Tensor]], folder: Path, **settings: Any) -> tuple[Trainer, list[float]]:
    settings = {"optim": "sgd", "learning_rate": 1e-2, "max_steps": STEPS, **settings}
    resume = settings.pop("resume", None)
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_steps=2,
        seed=5,
        **settings,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return trainer, [value for entry in history for value in (entry["loss"], entry["grad_norm"])]


def load(library: Any, folder: Path) -> Any:
    return library.Blip2ForConditionalGeneration.from_pretrained(folder)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "decayed": {"weight_decay": 0.5},
    "checkpointed": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "adam": {"optim": "adamw_torch", "learning_rate": 1e-4, "weight_decay": 0.1, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_losses_are_theirs(calm: Theirs, rows: list[dict[str, Tensor]], settings: str, tmp_path: Path) -> None:
    theirs, expected = train(load(transformers, calm.folder), rows, tmp_path / "theirs", **SETTINGS[settings])
    model = load(ours, calm.folder)
    trainer, found = train(model, rows, tmp_path / "ours", **SETTINGS[settings])
    assert len(found) == 2 * STEPS and found == pytest.approx(expected, rel=10 * TOLERANCE)
    assert found[0] == pytest.approx(expected[0], rel=TOLERANCE)
    assert trainer.state.total_flos == pytest.approx(theirs.state.total_flos, rel=0.01)
    assert model.is_gradient_checkpointing == (settings == "checkpointed")


def test_losses_with_dropout_are_theirs(calm: Theirs, rows: list[dict[str, Tensor]], tmp_path: Path) -> None:
    """The same numbers are drawn in the same order."""
    folder = Path(shutil.copytree(calm.folder, tmp_path / "dropout"))
    content = json.loads((folder / "config.json").read_text())
    content["qformer_config"] |= {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    content["text_config"] |= {"dropout": 0.2, "dropout_rate": 0.2}
    (folder / "config.json").write_text(json.dumps(content))
    _, expected = train(load(transformers, folder), rows, tmp_path / "theirs")
    _, found = train(load(ours, folder), rows, tmp_path / "ours")
    assert found == pytest.approx(expected, rel=10 * TOLERANCE)
    _, without = train(load(ours, calm.folder), rows, tmp_path / "without")
    assert found[0] != pytest.approx(without[0], rel=10 * TOLERANCE)


def test_weights_without_decay_are_theirs(calm: Theirs, tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    counts = []
    for library in (ours, transformers):
        model = load(library, calm.folder)
        decayed = set(Trainer(model=model, args=arguments).get_decay_parameter_names(model))
        counts.append(sum(tensor.numel() for name, tensor in model.named_parameters() if name in decayed))
    assert counts[0] == counts[1] > 10_000


def test_checkpointing_keeps_fewer_activations(calm: Theirs, rows: list[dict[str, Tensor]]) -> None:
    model = load(ours, calm.folder).train()
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    kept, losses, gradients = [], [], []
    for step in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        step()
        seen: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, seen=seen: seen.append(x.numel()) or x, lambda x: x):
            loss = model(**batch).loss
        model.zero_grad()
        loss.backward()
        kept.append(sum(seen))
        losses.append(loss)
        gradients.append({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None})
    assert kept[1] < 0.6 * kept[0]
    assert torch.equal(*losses)
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


@torch.no_grad()
def scores(model: Any, row: dict[str, Tensor]) -> Tensor:
    inputs = {name: tensor[None] for name, tensor in row.items()}
    logits: Tensor = model.eval()(**inputs).logits
    return logits


@pytest.mark.parametrize("saved_by", ["ours", "theirs"])
def test_folders_of_a_trainer_load_everywhere(
    calm: Theirs, rows: list[dict[str, Tensor]], image_paths: list[Path], saved_by: str, tmp_path: Path
) -> None:
    library = ours if saved_by == "ours" else transformers
    trainer, _ = train(load(library, calm.folder), rows, tmp_path)
    trainer.save_model(str(tmp_path / "last"))
    expected = scores(trainer.model, rows[0])
    caption: set[str] = set()
    for folder in (tmp_path / f"checkpoint-{STEPS}", tmp_path / "last"):
        for kind in (ours, transformers):
            found = scores(load(kind, folder), rows[0])
            assert torch.allclose(found, expected, atol=TOLERANCE * float(expected.abs().max()))
        has_words = {path.name for path in folder.iterdir()} >= WORDS
        assert has_words == (saved_by == "ours")  # ours knows its words
        words = None if has_words else calm.folder
        caption.add(openblip.load(folder, tokenizer=words).caption(image_paths[0]))
        if not has_words:
            with pytest.raises(CheckpointError, match=r"has no vocabulary: .* with tokenizer=\.\.\. \(--tokenizer\)"):
                openblip.load(folder)
            with pytest.raises(CheckpointError, match="has no vocabulary"):
                ours.AutoProcessor.from_pretrained(folder)
    assert len(caption) == 1


def test_a_folder_without_words_is_trained_and_saved_on(
    calm: Theirs, rows: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    train(load(transformers, calm.folder), rows, tmp_path / "first")
    folder = tmp_path / "first" / f"checkpoint-{STEPS}"
    _, expected = train(load(transformers, folder), rows, tmp_path / "theirs")
    again, found = train(load(ours, folder), rows, tmp_path / "ours")
    assert found == pytest.approx(expected, rel=10 * TOLERANCE)
    last = tmp_path / "ours" / f"checkpoint-{STEPS}"
    assert not WORDS & {path.name for path in last.iterdir()}
    reread = [scores(load(library, last), rows[0]) for library in (ours, transformers)]
    expected_scores = scores(again.model, rows[0])
    assert all(torch.allclose(one, expected_scores, atol=1e-4) for one in reread)
    assert load(transformers, last).config.text_config.eos_token_id == calm.model.config.text_config.eos_token_id


def test_a_run_goes_on_from_its_checkpoint(
    calm: Theirs, rows: list[dict[str, Tensor]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"optim": "adamw_torch", "learning_rate": 1e-4}
    _, expected = train(load(ours, calm.folder), rows, tmp_path / "begun", **settings)
    # The starting weights count for nothing then.
    other = load(ours, calm.folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    resume = str(tmp_path / "begun" / "checkpoint-2")
    _, found = train(other, rows, tmp_path / "begun", resume=resume, **settings)
    assert found[4:] == pytest.approx(expected[4:], rel=10 * TOLERANCE)
    assert "missing keys" not in caplog.text and "unexpected keys" not in caplog.text


def test_evaluation_generates_what_theirs_does(calm: Theirs, rows: list[dict[str, Tensor]], tmp_path: Path) -> None:
    results = []
    for library in (ours, transformers):
        model = load(library, calm.folder)
        arguments = Seq2SeqTrainingArguments(
            str(tmp_path),
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            per_device_eval_batch_size=2,
            predict_with_generate=True,
            generation_max_length=46,
            generation_num_beams=2,
        )
        trainer = Seq2SeqTrainer(model=model, args=arguments, processing_class=calm.processor.tokenizer)
        found = trainer.predict(rows)
        results.append((found.predictions.tolist(), found.metrics["test_loss"]))
    assert results[0][0] == results[1][0]
    assert results[0][1] == pytest.approx(results[1][1], rel=TOLERANCE)


def test_generation_settings_of_a_trainer(calm: Theirs, rows: list[dict[str, Tensor]], tmp_path: Path) -> None:
    model = load(ours, calm.folder)
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        predict_with_generate=True,
        generation_config=GenerationConfig(max_new_tokens=3, min_new_tokens=3),
    )
    trainer = Seq2SeqTrainer(model=model, args=arguments, processing_class=calm.processor.tokenizer)
    first, second = (trainer.predict(rows[:2]).predictions.tolist() for _ in range(2))
    assert first == second  # what the Trainer fills in changes nothing
    asked = {name: rows[0][name][None] for name in ("pixel_values", "input_ids", "attention_mask")}
    written = load(ours, calm.folder).generate(**asked, max_new_tokens=3, min_new_tokens=3)[0].tolist()
    assert first[0][: len(written)] == written


def test_losses_of_adapters_are_theirs(calm: Theirs, rows: list[dict[str, Tensor]], tmp_path: Path) -> None:
    results = []
    for name, library in (("ours", ours), ("theirs", transformers)):
        torch.manual_seed(3)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "q", "v", "query"])
        model: Any = peft.get_peft_model(load(library, calm.folder), config)
        settings = {"gradient_checkpointing": True, "label_names": ["labels"], "learning_rate": 1.0}
        results.append(train(model, rows, tmp_path / name, **settings)[1])
    assert results[0] == pytest.approx(results[1], rel=10 * TOLERANCE)
    adapter = tmp_path / "ours" / f"checkpoint-{STEPS}"
    bare = load(transformers, calm.folder)
    trained = scores(peft.PeftModel.from_pretrained(bare, adapter), rows[0])
    merged = load_parts(adapter)
    assert "checkpoint" in merged.name
    here = scores(peft.PeftModel.from_pretrained(load(ours, calm.folder), adapter), rows[0])
    assert torch.allclose(here, trained, atol=1e-4)


# What else scripts call


def test_states_of_either_library_load(calm: Theirs, rows: list[dict[str, Tensor]], tmp_path: Path) -> None:
    theirs, model = load(transformers, calm.folder), load(ours, calm.folder)
    expected = scores(model, rows[0])
    save_file(model.state_dict(), tmp_path / "plain.safetensors")  # nothing is there twice
    for state in (theirs.state_dict(), load_file(tmp_path / "plain.safetensors")):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        found = model.load_state_dict(state)
        assert not found.missing_keys and not found.unexpected_keys
        assert torch.equal(scores(model, rows[0]), expected)
    # Shard by shard, as a Trainer reads large checkpoints: pieces of what is one tensor here come one by one.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    items = list(theirs.state_dict().items())
    for part in (items[::2], items[1::2]):
        model.load_state_dict(dict(part), strict=False)
    assert torch.equal(scores(model, rows[0]), expected)


SAVES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "own": lambda model: {"state_dict": model.state_dict(), "save_function": torch.save},
    "none": lambda model: {"is_main_process": True, "state_dict": None, "token": "secret"},
    "part": lambda model: {"state_dict": {name: model.state_dict()[name] for name in ("query_tokens",)}},
}


@pytest.mark.parametrize("given", SAVES)
def test_keywords_of_save_pretrained(calm: Theirs, rows: list[dict[str, Tensor]], given: str, tmp_path: Path) -> None:
    model = load(ours, calm.folder)
    model.save_pretrained(tmp_path / "nobody", is_main_process=False)
    assert not (tmp_path / "nobody").exists()
    model.save_pretrained(tmp_path, **SAVES[given](model))
    assert torch.equal(scores(load(ours, tmp_path), rows[0]), scores(model, rows[0]))


def test_a_state_that_is_given_is_what_is_saved(calm: Theirs, rows: list[dict[str, Tensor]], tmp_path: Path) -> None:
    model, theirs = load(ours, calm.folder), load(transformers, calm.folder)
    expected = scores(model, rows[0])
    for name, state in (
        ("theirs", theirs.state_dict()),
        ("ours", {n: t.clone() for n, t in model.state_dict().items()}),
        ("compiled", {f"_orig_mod.{n}": t.clone() for n, t in model.state_dict().items()}),
        ("parallel", {f"module.{n}": t for n, t in theirs.state_dict().items()}),
    ):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        model.save_pretrained(tmp_path / name, state_dict=state)
        assert torch.equal(scores(load(ours, tmp_path / name), rows[0]), expected)
        model = load(ours, calm.folder)


@pytest.mark.parametrize("library", [ours, transformers], ids=["ours", "theirs"])
def test_a_processor_is_saved_beside_the_model(
    calm: Theirs, rows: list[dict[str, Tensor]], image_paths: list[Path], library: Any, tmp_path: Path
) -> None:
    processor = library.Blip2Processor.from_pretrained(calm.folder)
    model = load(ours, calm.folder)
    asked = {name: rows[0][name][None] for name in ("pixel_values", "input_ids", "attention_mask")}
    expected = model.generate(**asked, max_new_tokens=12)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, learning_rate=0.0, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)
    trainer.train()
    trainer.save_model(str(tmp_path / "last"))
    # The Trainer has set end tokens by the tokenizer's, which no text of transformers' BLIP-2 ends with, either.
    assert torch.equal(model.eval().generate(**asked, max_new_tokens=12), expected)
    found = openblip.load(tmp_path / "last").caption(image_paths[0])
    assert found == openblip.load(calm.folder).caption(image_paths[0])
    assert library.Blip2Processor.from_pretrained(tmp_path / "last").num_query_tokens == 4


def test_matchers_are_saved(matcher: Theirs, tmp_path: Path) -> None:
    ours.Blip2ForImageTextRetrieval.from_pretrained(matcher.folder).save_pretrained(tmp_path)
    expected = matcher.model.state_dict()
    found = transformers.Blip2ForImageTextRetrieval.from_pretrained(tmp_path).state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_copies_and_pickles(calm: Theirs, rows: list[dict[str, Tensor]]) -> None:
    model = load(ours, calm.folder)
    expected = scores(model, rows[0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # its own, not from anywhere
        assert type(other) is ours.Blip2ForConditionalGeneration and isinstance(other, transformers.PreTrainedModel)
        assert torch.equal(scores(other, rows[0]), expected)


def test_what_is_there_for_training_scripts(calm: Theirs) -> None:
    model, theirs = load(ours, calm.folder), load(transformers, calm.folder)
    assert model.main_input_name == theirs.main_input_name
    for options in ({}, {"exclude_embeddings": True}, {"only_trainable": True}):
        biases = sum(36 for name in theirs.state_dict() if name.endswith("qkv.bias"))
        assert theirs.num_parameters(**options) - biases == model.num_parameters(**options)
    assert model.get_input_embeddings().weight.shape == theirs.get_input_embeddings().weight.shape
    assert torch.equal(model.get_output_embeddings().weight, theirs.get_output_embeddings().weight)
    rows = len(model.get_input_embeddings().weight)
    assert model.resize_token_embeddings(rows, pad_to_multiple_of=rows) is model.get_input_embeddings()
    model.config.use_cache = False
    model.config.text_config.pad_token_id = 3
    assert model.config.to_dict()["text_config"]["pad_token_id"] == 3 and not model.config.use_cache
    assert json.loads(model.config.to_json_string())["use_cache"] is False
    assert model.config.get_text_config() is model.config.text_config
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: model.resize_token_embeddings(rows + 1), rf"{rows} rows and cannot be resized to {rows + 1}"),
        (lambda: model.push_to_hub("me/mine"), "push_to_hub uploads nothing here: save_pretrained"),
        (lambda: model.save_pretrained("x", push_to_hub=True), "uploads nothing here"),
        (lambda: model.save_pretrained("x", variant="fp16"), "variant is 'fp16'"),
        (lambda: model.save_pretrained("x", colour=3), "save_pretrained does not know colour here"),
        (lambda: model.gradient_checkpointing_enable(every_n_layers=2), "every_n_layers is not known here"),
        (lambda: model.activation_checkpointing_enable(offload=True), "offload is not known here"),
    ]
    for call, words in refused:
        with pytest.raises(OptionError, match=words):
            call()
