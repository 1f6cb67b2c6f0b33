"""LAVIS' files in their official layouts: parts that were frozen lie in files of their own."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from openblip.checkpoints.lavis.read import LavisFiles, load_lavis, read_lavis
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.read_options import ReadOptions
from openblip.errors import CheckpointError, OptionError
from openblip.nn.t5 import T5Config
from tests.checkpoints.official import official
from tests.pairs.lavis import FOLDER, recorded_config, recorded_weights
from tests.pairs.lavis_names import blip2_from_lavis

FROZEN = ("visual_encoder.", "opt_model.", "t5_model.")


def split(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What stands under each frozen prefix, without it, and the rest under ''."""
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in ("", *FROZEN)}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in FROZEN if name.startswith(prefix)), "")
        parts[prefix][name.removeprefix(prefix)] = tensor
    return parts


def lay_out(folder: Path, state: dict[str, Tensor]) -> LavisFiles:
    """As the official files lie: a checkpoint of what was trained, and the bare image encoder."""
    parts = split(state)
    torch.save({"model": parts[""], "config": {"run": {"lr": 1e-4}}, "epoch": 9}, folder / "trained.pth")
    torch.save(parts["visual_encoder."], folder / "eva_vit_g.pth")
    return LavisFiles(folder / "trained.pth", folder / "eva_vit_g.pth")


def opt_folder(folder: Path, state: dict[str, Tensor]) -> Path:
    sizes = recorded_config(2).language
    assert sizes is not None
    config = OPTConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        ffn_dim=sizes.ffn_width,
        num_attention_heads=sizes.num_heads,
        max_position_embeddings=sizes.max_positions,
        word_embed_proj_dim=sizes.width,
    )
    theirs = OPTForCausalLM(config)
    theirs.load_state_dict(split(state)["opt_model."])
    theirs.save_pretrained(folder)
    return folder


def equal(network: torch.nn.Module, expected: dict[str, Tensor]) -> bool:
    found = network.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def test_stage_1_from_two_files(tmp_path: Path) -> None:
    config, state = recorded_config(1), recorded_weights(1)
    files = lay_out(tmp_path, state)
    network = read_lavis(config, files)
    assert equal(network, blip2_from_lavis(state, config))
    assert not network.training
    halves = read_lavis(config, files, ReadOptions(dtype=torch.bfloat16))
    assert {tensor.dtype for tensor in halves.state_dict().values()} == {torch.bfloat16}


def test_opt_from_three_files_and_with_its_tied_stray(tmp_path: Path) -> None:
    config, state = recorded_config(2), recorded_weights(2)
    files = replace(lay_out(tmp_path, state), language=opt_folder(tmp_path / "opt", state))
    expected = blip2_from_lavis(state, config)
    assert equal(read_lavis(config, files), expected)
    saved = torch.load(files.checkpoint, weights_only=True)
    saved["model"]["opt_model.lm_head.weight"] = state["opt_model.model.decoder.embed_tokens.weight"]
    torch.save(saved, files.checkpoint)
    assert equal(read_lavis(config, files), expected)


def test_t5_from_three_files(tmp_path: Path) -> None:
    first, second = recorded_weights(2), load_file(FOLDER / "t5_weights.safetensors")
    state = {name: tensor for name, tensor in first.items() if not name.startswith(("opt_model.", "opt_proj."))}
    ours = T5Config(120, 64, 2, 2, 4, 16, 96, activation="gelu")
    config = replace(recorded_config(2), language=ours)
    state |= second
    # transformers 5 would tie FLAN-T5's head on the way.
    (tmp_path / "t5").mkdir()
    save_file(split(state)["t5_model."], tmp_path / "t5" / "model.safetensors")
    files = replace(lay_out(tmp_path, state), language=tmp_path / "t5")
    assert equal(read_lavis(config, files), blip2_from_lavis(state, config))


def test_a_fine_tuned_file_has_its_own_image_encoder(tmp_path: Path) -> None:
    config, state = recorded_config(1), recorded_weights(1)
    torch.save({"model": state}, tmp_path / "coco.pth")
    assert equal(read_lavis(config, LavisFiles(tmp_path / "coco.pth")), blip2_from_lavis(state, config))


def test_a_whole_stage_1_model(tmp_path: Path) -> None:
    small = replace(official("blip2_feature_extractor/pretrain"), build_config=lambda: recorded_config(1))
    (tmp_path / "vocab.txt").write_bytes((FOLDER / "vocab.txt").read_bytes())
    files = replace(lay_out(tmp_path, recorded_weights(1)), words=tmp_path)
    parts = load_lavis(small, files)
    assert parts.matching is not None and parts.tokenizer is None
    assert (parts.matching.max_tokens, parts.matching.decoder_start_id) == (32, 53)
    recorded = load_file(FOLDER / "stage1_ref.safetensors")
    ids, mask = parts.matching.batch(["a photo of the red cat", "blue car"])
    assert ids[0].tolist() == recorded["input_ids"][0][: ids.shape[1]].tolist()
    assert mask[1].sum() == recorded["attention_mask"][2].sum()


def test_what_is_missing_or_does_not_fit_is_named_with_its_file(tmp_path: Path) -> None:
    config, state = recorded_config(2), recorded_weights(2)
    files = replace(lay_out(tmp_path, state), language=opt_folder(tmp_path / "opt", state))

    def refused(words: str, changed: LavisFiles = files) -> None:
        with pytest.raises(CheckpointError, match=words):
            read_lavis(config, changed)

    refused(r"image encoder, which .*trained\.pth lacks because it was frozen", replace(files, vision=None))
    refused(r"language model, which .*trained\.pth lacks", replace(files, language=None))
    encoder = torch.load(files.vision, weights_only=True)
    weight = encoder.pop("blocks.1.mlp.fc1.weight")
    torch.save(encoder, files.vision)
    refused(r"vision\.blocks\.1\.mlp\.fc1\.weight is missing from eva_vit_g\.pth")
    torch.save({**encoder, "blocks.1.mlp.fc1.weight": weight[:5]}, files.vision)
    refused(r"blocks\.1\.mlp\.fc1\.weight in eva_vit_g\.pth is \[5, 88\], not \[\d+, 88\]")


def test_broken_and_hostile_files(tmp_path: Path) -> None:
    config, state = recorded_config(1), recorded_weights(1)
    files = lay_out(tmp_path, state)
    whole = files.checkpoint.read_bytes()

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for content in (whole[: len(whole) // 2], b"", b"no checkpoint", pickle.dumps(Hostile())):
        files.checkpoint.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"trained\.pth is (broken|empty)"):
            read_lavis(config, files)
    torch.save({"model": Hostile()}, files.checkpoint)
    with pytest.raises(CheckpointError, match=r"trained\.pth is (broken|empty)"):
        read_lavis(config, files)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_goes_with_a_lavis_name_alone(tmp_path: Path) -> None:
    file = tmp_path / "trained.pth"
    file.touch()
    for name in ("mini", "Salesforce/blip2-opt-2.7b", str(tmp_path)):
        with pytest.raises(OptionError, match="LAVIS name"):
            load_parts(name, ReadOptions(checkpoint=file))
    with pytest.raises(CheckpointError, match="checkpoint="):
        load_parts(file)
    with pytest.raises(CheckpointError, match="neither a model folder"):
        load_parts(tmp_path / "nowhere")
