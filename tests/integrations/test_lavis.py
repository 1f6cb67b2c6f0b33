"""LAVIS' calls give what LAVIS recorded (tests/fixtures/lavis), and what it cannot do works."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers
from torch import Tensor
from transformers import BlipImageProcessor

from openblip.checkpoints.model_parts import GenerationDefaults, ModelParts
from openblip.checkpoints.transformers.tokenizers import read_matching
from openblip.errors import OpenBlipError
from openblip.images.transform import ImageTransform
from openblip.integrations.lavis import load_model_and_preprocess, load_preprocess, model_zoo, registry
from openblip.integrations.lavis.models import Blip2ITM, Blip2OPT, Blip2Qformer, Blip2T5
from openblip.nn.blip2 import Blip2Network
from openblip.nn.t5 import T5Config
from openblip.text import Tokenizer
from tests.checkpoints.theirs import Theirs, write_matcher, write_writer
from tests.pairs.lavis import FOLDER, recorded_config, recorded_weights
from tests.pairs.lavis_names import blip2_from_lavis, t5_from_lavis

TOLERANCE = 4.8e-6
"""Three times how far LAVIS' recorded features are from float64 (1.6e-6, see tests/nn/test_lavis_reference.py)."""
PROMPT = "w23 w50 w57"
"""What the recording calls "a photo of"."""


def numbered_words(special: dict[int, str]) -> FastTokenizer:
    """Every id is a word of its own: the recording has ids alone."""
    words = FastTokenizer(models.WordLevel({special.get(i, f"w{i}"): i for i in range(120)}, unk_token="w100"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([special[i] for i in special if i != 3])
    return words


def words_of(ids: Tensor, stop: int) -> list[str]:
    """Texts of recorded ids, without the start token, special tokens and what follows the stop token."""
    rows = [row[1:] for row in ids.tolist()]
    texts = [row[: row.index(stop)] if stop in row else row for row in rows]
    return [" ".join(f"w{i}" for i in text if i > 1) for text in texts]


def stage1_parts(tmp_path: Path) -> ModelParts:
    (tmp_path / "vocab.txt").write_bytes((FOLDER / "vocab.txt").read_bytes())
    config = recorded_config(1)
    network = Blip2Network(config).eval()
    network.load_state_dict(blip2_from_lavis(recorded_weights(1), config))
    return ModelParts("recorded", network, ImageTransform(56), read_matching(tmp_path, 12, 54), None)


@pytest.fixture
def captions() -> list[str]:
    texts: list[str] = json.loads((FOLDER / "meta.json").read_text())["captions"]
    return texts


@pytest.fixture
def recorded() -> dict[str, Tensor]:
    return load_file(FOLDER / "stage1_ref.safetensors")


def close(ours: Tensor | None, theirs: Tensor) -> bool:
    return ours is not None and ours.shape == theirs.shape and (ours - theirs).abs().max().item() <= TOLERANCE


def test_features(tmp_path: Path, captions: list[str], recorded: dict[str, Tensor]) -> None:
    model = Blip2Qformer(stage1_parts(tmp_path)).eval()
    samples = {"image": recorded["images"], "text_input": captions}
    image = model.extract_features(samples, mode="image")
    text = model.extract_features(samples, mode="text")
    both = model.extract_features(samples)
    assert close(image.image_embeds, recorded["feat_image_image_embeds"])
    assert close(image.image_embeds_proj, recorded["feat_image_image_embeds_proj"])
    assert close(text.text_embeds, recorded["feat_text_text_embeds"])
    assert close(text.text_embeds_proj, recorded["feat_text_text_embeds_proj"])
    assert close(both.multimodal_embeds, recorded["feat_multimodal_multimodal_embeds"])
    assert image.text_embeds is None and text.image_embeds is None and both.image_embeds is None
    assert close(
        model.extract_features({"text_input": "blue car"}, mode="text").text_embeds[:, 0], text.text_embeds[2:3, 0]
    )
    with pytest.raises(OpenBlipError, match="image, text or multimodal"):
        model.extract_features(samples, mode="audio")
    with pytest.raises(OpenBlipError, match='no "image"'):
        model.extract_features({"text_input": captions}, mode="image")


def test_matching_in_one_batch_of_texts_of_different_lengths(
    tmp_path: Path, captions: list[str], recorded: dict[str, Tensor]
) -> None:
    model = Blip2ITM(stage1_parts(tmp_path), max_txt_len=12).eval()
    samples = {"image": recorded["images"], "text_input": captions}
    assert close(model(samples, match_head="itm"), recorded["itm_logits"])
    assert close(model(samples, match_head="itc"), recorded["itc_scores"][:, None])
    for row in range(4):
        alone = {"image": recorded["images"][row : row + 1], "text_input": captions[row]}
        assert close(model(alone, match_head="itm"), recorded["itm_logits"][row : row + 1])


def test_the_stage_1_loss_trains_without_a_process_group(
    tmp_path: Path, captions: list[str], recorded: dict[str, Tensor]
) -> None:
    model = Blip2Qformer(stage1_parts(tmp_path), max_txt_len=12).eval()
    output = model({"image": recorded["images"], "text_input": captions})
    assert close(output.loss_itc, recorded["stage1_eval_loss_itc"].squeeze())
    assert close(output.loss_lm, recorded["stage1_eval_loss_lm"].squeeze())
    assert output.loss.item() == pytest.approx((output.loss_itc + output.loss_itm + output.loss_lm).item())
    output.loss.backward()
    assert model.network.qformer.queries.grad is not None
    assert all(parameter.grad is None for parameter in model.network.vision.parameters())
    model.train()
    assert model.network.qformer.training and not model.network.vision.training


def opt(monkeypatch: pytest.MonkeyPatch) -> tuple[Blip2OPT, dict[str, Tensor]]:
    recorded = load_file(FOLDER / "opt_ref.safetensors")
    config = recorded_config(2)
    network = Blip2Network(config).eval()
    network.load_state_dict(blip2_from_lavis(recorded_weights(2), config))
    words = Tokenizer(numbered_words({1: "<pad>", 2: "</s>", 3: "\n"}), start_token="</s>", pad_token="<pad>")
    monkeypatch.setattr(words, "only_id", lambda _: 3)
    model = Blip2OPT(ModelParts("recorded", network, ImageTransform(56), None, words), max_txt_len=12).eval()
    monkeypatch.setattr(model, "image_features", lambda samples: recorded["image_embeds"][: len(samples["image"])])
    return model, recorded


def test_opt_captions_and_answers_are_the_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recorded = opt(monkeypatch)
    samples = {"image": torch.empty(4), "prompt": PROMPT}
    length = recorded["generate_beam5_ids"].shape[1]
    for beams in (1, 5):
        expected = words_of(recorded[f"generate_beam{beams}_ids"], stop=3)
        assert model.generate(samples, num_beams=beams, max_length=length) == expected
    questions = [
        " ".join(f"w{i}" for i in ids[mask.bool()][1:].tolist())
        for ids, mask in zip(recorded["pa_input_ids"], recorded["pa_attention_mask"], strict=True)
    ]
    asked = {"image": torch.empty(4), "text_input": questions}
    answer_length = recorded["predict_answers_ids"].shape[1] - 1
    assert model.predict_answers(asked, max_len=answer_length) == words_of(recorded["predict_answers_ids"], stop=3)


def test_every_image_may_have_its_own_prompt_and_several_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = opt(monkeypatch)
    prompts = [PROMPT, "w9", "w20 w21 w22 w23", ""]
    together = model.generate({"image": torch.empty(4), "prompt": prompts}, num_captions=3)
    assert len(together) == 12
    first = model.generate({"image": torch.empty(1), "prompt": PROMPT}, num_captions=3)
    assert together[:3] == first
    drawn = model.generate({"image": torch.empty(2)}, use_nucleus_sampling=True, num_captions=4, temperature=2.0)
    assert len(drawn) == 8
    with pytest.raises(OpenBlipError, match='"prompt" has 3 texts for 4 images'):
        model.generate({"image": torch.empty(4), "prompt": prompts[:3]})


def test_opt_loss_is_the_recorded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recorded = opt(monkeypatch)
    model.prompt = PROMPT
    rows = [
        ids[mask.bool()][1:-1]
        for ids, mask in zip(*map(recorded.get, ("train_input_ids", "train_attention_mask")), strict=True)
    ]
    encode = model.tokenizer.encode
    monkeypatch.setattr(
        model.tokenizer, "encode", lambda text: [*encode(text.rstrip("\n")), 3] if text.endswith("\n") else encode(text)
    )
    texts = [" ".join(f"w{i}" for i in row.tolist()) for row in rows]
    loss = model({"image": torch.empty(4), "text_input": texts})["loss"]
    assert close(loss, recorded["loss"].squeeze())


def test_t5_captions_are_the_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = load_file(FOLDER / "t5_ref.safetensors")
    t5 = T5Config(120, 64, 2, 2, 4, 16, 96, activation="gelu")
    network = Blip2Network(replace(recorded_config(2), language=t5)).eval()
    network.t5.load_state_dict(t5_from_lavis(load_file(FOLDER / "t5_weights.safetensors"), t5))
    words = Tokenizer(numbered_words({0: "<pad>", 1: "</s>"}), start_token="</s>", pad_token="<pad>")
    defaults = GenerationDefaults(stop_token="</s>")
    model = Blip2T5(ModelParts("recorded", network, ImageTransform(56), None, words, defaults=defaults)).eval()
    monkeypatch.setattr(model, "image_features", lambda samples: recorded["inputs_t5"])
    monkeypatch.setattr(network, "visual_prompt", lambda features: features)
    length = recorded["generate_beam5_ids"].shape[1] - 1
    for beams in (1, 5):
        found = model.generate({"image": torch.empty(4), "prompt": PROMPT}, num_beams=beams, max_length=length)
        assert found == words_of(recorded[f"generate_beam{beams}_ids"], stop=1)


# -- processors


def test_evaluation_pixels_are_transformers(image_paths: list[Path]) -> None:
    images, texts = load_preprocess(
        {
            "vis_processor": {"eval": {"name": "blip_image_eval", "image_size": 224}},
            "text_processor": {"eval": {"name": "blip_caption", "prompt": "a photo of "}},
        }
    )
    reference = BlipImageProcessor(size={"height": 224, "width": 224})
    for image_path in image_paths:
        with Image.open(image_path) as opened:
            image = opened.convert("RGB")
        expected = reference(image, return_tensors="pt")["pixel_values"][0]
        assert torch.allclose(images["eval"](image), expected, atol=1e-6)
    assert texts["eval"]("A Dog, running.\tFast!  (really)\n") == "a photo of a dog, running fast really"


def test_training_images_are_crops(image_paths: list[Path]) -> None:
    train = load_preprocess({"vis_processor": {"train": {"name": "blip2_image_train", "image_size": 32}}})[0]["train"]
    views = torch.stack([train(image_paths[0]) for _ in range(6)])
    assert views.shape == (6, 3, 32, 32)
    assert len({view.sum().item() for view in views}) == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's in the (big) box?", "what's in the big box?"),
        ("Is it red...  ", "is it red"),
        ("one two three", "one two"),
    ],
)
def test_questions(text: str, expected: str) -> None:
    limit = 2 if text.startswith("one") else 50
    settings = {"name": "blip_question", "max_words": limit}
    assert load_preprocess({"text_processor": {"eval": settings}})[1]["eval"](text) == expected


# -- look-ups


def test_the_zoo_is_lavis(capsys: pytest.CaptureFixture[str]) -> None:
    print(model_zoo)
    shown = capsys.readouterr().out
    assert "blip2_opt                      pretrain_opt2.7b, caption_coco_opt2.7b, pretrain_opt6.7b" in shown
    assert dict(model_zoo)["blip2_t5"] == [
        "pretrain_flant5xl",
        "caption_coco_flant5xl",
        "pretrain_flant5xxl",
        "pretrain_flant5xl_vitL",
    ]
    assert dict(model_zoo)["blip2"] == ["pretrain", "pretrain_vitL", "coco"]
    assert sum(len(types) for name, types in model_zoo if name.startswith("blip2")) == 17
    assert registry.get_model_class("blip2_opt") is Blip2OPT
    assert registry.list_models() == sorted(dict(model_zoo))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: load_model_and_preprocess("blip3", "pretrain"), "architecture 'blip3'.*blip2_opt"),
        (lambda: load_model_and_preprocess("blip2_opt", "pretrain_opt27b"), "did you mean blip2_opt/pretrain_opt2.7b"),
        (lambda: load_preprocess({"vis_processor": {"eval": {"name": "clip_image"}}}), "image processor 'clip_image'"),
        (lambda: registry.get_processor_class("blip_video"), "processor 'blip_video'"),
    ],
)
def test_wrong_names_are_explained(call: Callable[[], object], words: str) -> None:
    with pytest.raises(OpenBlipError, match=words):
        call()


# -- a whole script, with only the model's name changed


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_writer(tmp_path_factory.mktemp("writer"))


def test_a_captioning_script(writer: Theirs, image_paths: list[Path]) -> None:
    device = "cpu"
    raw_image = Image.open(image_paths[0]).convert("RGB")
    model, vis_processors, _ = load_model_and_preprocess(
        name="blip2_opt", model_type=writer.folder, is_eval=True, device=device
    )
    image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
    found = model.generate({"image": image, "prompt": "Question: what is it? Answer:"}, num_beams=3, max_length=9)
    inputs = writer.processor(images=raw_image, text="Question: what is it? Answer:", return_tensors="pt")
    stop = model.stop_id
    ids = writer.model.generate(**inputs, num_beams=3, max_new_tokens=8, eos_token_id=stop, do_sample=False)
    told = writer.processor.tokenizer.decode(ids[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert found == [told.strip()]
    assert model.predict_answers(
        {"image": image, "text_input": "what is it?"}, prompt="Question: {} Answer:", max_len=5
    )


def test_a_feature_script(image_paths: list[Path], tmp_path: Path) -> None:
    theirs = write_matcher(tmp_path)
    model, vis_processors, txt_processors = load_model_and_preprocess(
        name="blip2_feature_extractor", model_type=str(theirs.folder), is_eval=True
    )
    image = vis_processors["eval"](Image.open(image_paths[0])).unsqueeze(0)
    sample = {"image": image, "text_input": [txt_processors["eval"]("A red ball.")]}
    image_features = model.extract_features(sample, mode="image")
    text_features = model.extract_features(sample, mode="text")
    similarity = (image_features.image_embeds_proj @ text_features.text_embeds_proj[:, 0, :].t()).max()
    matcher, _, _ = load_model_and_preprocess("blip2_image_text_matching", theirs.folder, is_eval=True)
    assert matcher(sample, match_head="itc").item() == pytest.approx(similarity.item(), abs=1e-6)
    assert matcher(sample, match_head="itm").softmax(dim=1)[:, 1].item() <= 1
