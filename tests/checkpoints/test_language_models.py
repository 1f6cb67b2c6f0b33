"""Models with an external language model: put together, saved, loaded again; whatever cannot work is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import openblip
from openblip.checkpoints.language_models import fingerprint, load_language_model
from openblip.checkpoints.loading import load_parts, with_language_model
from openblip.checkpoints.model_parts import LanguageSource, ModelParts
from openblip.checkpoints.openblip.folder import load_native, save_native
from openblip.checkpoints.tools.convert import convert
from openblip.checkpoints.transformers.read import load_transformers
from openblip.checkpoints.transformers.write import save_transformers
from openblip.devices import choose_placement
from openblip.errors import CheckpointError, OpenBlipError, OptionError
from openblip.integrations.lavis.models import Blip2OPT
from openblip.models.load import model_of
from openblip.nn.blip2 import Blip2Network

from ..language_models import IDS, START, STOP, WIDTH, write_language_model
from .theirs import write_matcher


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model("llama", tmp_path_factory.mktemp("language") / "llama")


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model("bart", tmp_path_factory.mktemp("language") / "bart")


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy of the language model that a test may break."""
    return Path(shutil.copytree(llama, tmp_path / "llama"))


def load(folder: Path, **values: Any) -> Any:
    return load_language_model(LanguageSource(str(folder), **values))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_all_but_the_language_side_is_kept(tiny_parts: ModelParts, llama: Path) -> None:
    parts = with_language_model(tiny_parts, llama)
    before, after = tiny_parts.network.state_dict(), parts.network.state_dict()
    assert set(after) == {name for name in before if not name.startswith("decoder.")}
    for name, tensor in after.items():
        same = tensor.shape == before[name].shape and torch.equal(tensor, before[name])
        assert same is not name.startswith("prompt_projection."), name
    words = parts.network.language_model.embed(torch.arange(300))
    queries = torch.nn.functional.layer_norm(torch.randn(500, 32), (32,))
    ratio = parts.network.prompt_projection(queries).std() / words.std()
    assert 0.8 < ratio < 1.2, "visual tokens are as large as words"
    assert (parts.matching, parts.transform) == (tiny_parts.matching, tiny_parts.transform)
    assert parts.external == LanguageSource(str(llama.resolve()), None, fingerprint(llama))
    # What was handed in stays as it is, whatever becomes of the new model.
    values = {name: tensor.clone() for name, tensor in before.items()}
    model_of(parts, choose_placement("cpu")).network.qformer.queries.data.zero_()
    assert all(torch.equal(tensor, values[name]) for name, tensor in tiny_parts.network.state_dict().items())
    assert tiny_parts.network.config.language is not None and tiny_parts.external is None


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_saved_without_the_language_model_and_loaded_with_it(
    tiny_parts: ModelParts, kind: str, request: pytest.FixtureRequest, tmp_path: Path, image_paths: list[Path]
) -> None:
    torch.manual_seed(3)
    parts = with_language_model(tiny_parts, request.getfixturevalue(kind))
    parts.network.prompt_projection.weight.data.mul_(3)
    save_native(parts, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "qformer_tokenizer.json"
    ]  # fmt: skip
    assert set(load_file(tmp_path / "model.safetensors")) == set(parts.network.state_dict())
    model = openblip.load(tmp_path, device="cpu")
    first = model_of(parts, model.placement)
    for options in ({"num_beams": 1}, {"num_beams": 3, "num_captions": 2}, {"top_p": 0.9, "seed": 1}):
        assert model.caption(list(image_paths), **options) == first.caption(list(image_paths), **options)
    assert len(set(model.caption(list(image_paths)))) > 1, "captions depend on the image"
    questions = ["what is it?", "how many children are there?"]
    assert model.ask(image_paths[0], questions) == first.ask(image_paths[0], questions)
    chat = model.chat(image_paths[1])
    assert [isinstance(chat.ask("what is this?"), str) for _ in range(8)] == [True] * 8
    assert model.match(image_paths[0], "a dog").itc == first.match(image_paths[0], "a dog").itc


def test_what_the_language_model_reads(tiny_parts: ModelParts, llama: Path, bart: Path) -> None:
    for folder, before, after in ((llama, [START], []), (bart, [], [STOP])):
        parts = with_language_model(tiny_parts, folder)
        told = parts.require_words().encode("a dog")
        assert parts.prompt_ids("a dog") == [*before, *told, *after]
        assert parts.stop_id == STOP
    # BART's decoder begins with </s>, and its own tokenizer begins every text with <s>.
    assert load(bart).model.config.start_ids == (STOP, START)


def test_casts_and_optimizers_do_not_reach_it(tiny_parts: ModelParts, llama: Path) -> None:
    network = with_language_model(tiny_parts, llama).network
    assert isinstance(network, Blip2Network) and network.external is not None
    count = len(list(network.parameters()))
    network.to(torch.bfloat16)
    theirs = network.external.model
    assert {tensor.dtype for tensor in [*theirs.parameters(), *theirs.buffers()]} == {torch.float32}
    assert count == len(network.state_dict()) - len(list(network.buffers()))


def test_half_precision_is_loaded_as_such(
    tiny_parts: ModelParts, llama: Path, tmp_path: Path, image_paths: list[Path]
) -> None:
    save_native(with_language_model(tiny_parts, llama), tmp_path)
    model = openblip.load(tmp_path, device="cpu", dtype="bfloat16")
    theirs = model.network.external.model  # type: ignore[union-attr]
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}
    assert theirs.model.rotary_emb.inv_freq.dtype == torch.float32
    assert isinstance(model.caption(image_paths[0]), str)


def test_a_path_may_be_relative_to_the_model(tiny_parts: ModelParts, llama: Path, tmp_path: Path) -> None:
    save_native(with_language_model(tiny_parts, llama), tmp_path / "model")
    shutil.copytree(llama, tmp_path / "model" / "language")
    edit(tmp_path / "model" / "config.json", lambda content: content["external"].update(place="language"))
    found = load_native(tmp_path / "model")
    assert found.external is not None and found.external.place == str((tmp_path / "model" / "language").resolve())


def test_a_repository_is_held_at_its_commit(
    tiny_parts: ModelParts, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--someone--little"
    for commit in ("aaa", "bbb"):
        shutil.copytree(llama, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("aaa")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    parts = with_language_model(tiny_parts, "someone/little")
    assert parts.external == LanguageSource("someone/little", "aaa", fingerprint(llama))
    save_native(parts, tmp_path / "model")
    (cached / "refs" / "main").write_text("bbb")
    assert load_native(tmp_path / "model").external == parts.external
    shutil.rmtree(cached / "snapshots" / "aaa")
    with pytest.raises(OpenBlipError, match="someone/little is not on this machine"):
        load_native(tmp_path / "model")


def test_another_language_model_in_its_place_is_noticed(tiny_parts: ModelParts, folder: Path, tmp_path: Path) -> None:
    save_native(with_language_model(tiny_parts, folder), tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"] * 1.001
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is not the language model that this model was trained with"):
        load_native(tmp_path / "model")
    edit(tmp_path / "model" / "config.json", lambda content: content["external"].update(fingerprint=None))
    load_native(tmp_path / "model")
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"is not there: put its folder back"):
        load_native(tmp_path / "model")


def test_other_layouts_have_no_place_for_it(tiny_parts: ModelParts, llama: Path, tmp_path: Path) -> None:
    save_native(with_language_model(tiny_parts, llama), tmp_path / "model")
    with pytest.raises(CheckpointError, match="LAVIS has BLIP-2 with"):
        convert(tmp_path / "model", tmp_path / "lavis", "lavis")
    with pytest.raises(CheckpointError, match="has an external language model"):
        Blip2OPT(load_native(tmp_path / "model"))
    writer = replace(load_native(tmp_path / "model"), matching=None)
    write_matcher(tmp_path / "matcher")
    plain = with_language_model(load_transformers(tmp_path / "matcher"), llama)
    with pytest.raises(OptionError, match="cannot write or match"):
        save_transformers(replace(plain, matching=None), tmp_path / "theirs")
    convert(tmp_path / "model", tmp_path / "small", "openblip", storage="int8")
    assert load_parts(tmp_path / "small").external == writer.external


WITHOUT_TRANSFORMERS = """
import sys
sys.modules["transformers"] = None
import openblip
try:
    openblip.load({external!r}, device="cpu")
except openblip.OpenBlipError as error:
    print(error)
print(openblip.load({own!r}, device="cpu"))
"""


def test_a_missing_extra_is_named_and_all_else_does_without(
    tiny_parts: ModelParts, llama: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    save_native(with_language_model(tiny_parts, llama), tmp_path)
    program = WITHOUT_TRANSFORMERS.format(external=str(tmp_path), own=str(tiny_model_folder))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8", check=True)
    needed, loaded = done.stdout.splitlines()
    assert needed == 'a language model of transformers needs it: pip install "openblip[hf]"'
    assert loaded.startswith("Model('tiny'")


def write_other(folder: Path, model: Any) -> None:
    """Another model in the folder, whose words stay."""
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)


SIZES = {"vocab_size": 300, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, **IDS}
MAMBA = {"vocab_size": 300, "hidden_size": WIDTH, "num_hidden_layers": 1, "state_size": 4, **IDS}
PEGASUS = {
    "vocab_size": 300, "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "decoder_start_token_id": 1,
    "scale_embedding": True, **IDS
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: transformers.BertLMHeadModel(transformers.BertConfig(**SIZES, intermediate_size=8)), "cannot stand"),
        (lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**MAMBA)), "cannot go on from embeddings"),
        (
            lambda: transformers.PegasusForConditionalGeneration(transformers.PegasusConfig(**PEGASUS)),
            "does not go on from embeddings as it does from words",
        ),
        (
            lambda: transformers.LlamaModel(transformers.LlamaConfig(**SIZES, tie_word_embeddings=False)),
            r"lacks weights of a language model \(lm_head.weight\)",
        ),
        (lambda: transformers.ViTModel(transformers.ViTConfig(hidden_size=12, num_attention_heads=2)), "cannot load"),
    ],
    ids=["looks-ahead", "other-state", "scales-words", "headless", "no-words"],
)
def test_models_that_cannot_stand_there_are_refused(folder: Path, make: Callable[[], Any], problem: str) -> None:
    torch.manual_seed(0)
    write_other(folder, make())
    with pytest.raises(CheckpointError, match=problem):
        load(folder)


ROTARY = {**SIZES, "intermediate_size": 8, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64}
HALVES = {"vocab_size": 300, "d_model": WIDTH, "d_kv": 6, "d_ff": 8, "num_layers": 1, "num_heads": 2}
FAMILIES = {
    "mistral": {**ROTARY, "sliding_window": 4},
    "mixtral": {**ROTARY, "num_local_experts": 2},
    "qwen2": ROTARY,
    "qwen3": ROTARY,
    "gemma": ROTARY,
    "gemma3_text": {**ROTARY, "sliding_window": 4},
    "cohere": {**ROTARY, "logit_scale": 0.3},
    "granite": {**ROTARY, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "phi": {**ROTARY, "head_dim": 12, "num_attention_heads": 2},
    "phi3": ROTARY,
    "gpt_neox": ROTARY,
    "falcon": {**SIZES, "alibi": True},
    "mpt": {"vocab_size": 300, "d_model": WIDTH, "n_heads": 4, "n_layers": 2, **IDS},
    "biogpt": {**SIZES, "intermediate_size": 8, "scale_embedding": True},
    "mbart": {**PEGASUS, "scale_embedding": True},
    "umt5": {**HALVES, "decoder_start_token_id": 1, "pad_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_can_stand_there(folder: Path, family: str) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    write_other(folder, model)
    found = load(folder).model.config
    assert (found.token_width, found.encodes_prompts) == (WIDTH, config.is_encoder_decoder)


def broken_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def own_code(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text(
        f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\nclass Sizes: pass\n"
    )
    mapped = {"AutoConfig": "modeling_evil.Sizes", "AutoModelForCausalLM": "modeling_evil.Evil"}
    edit(folder / "config.json", lambda content: content.update(auto_map=mapped, model_type="evil"))


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return exec, ("raise SystemExit('code was run')",)


def pickled_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (broken_weights, "broken"),
        (own_code, "cannot load"),
        (pickled_code, "could run code"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no vocabulary"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    ],
    ids=["truncated", "own-code", "pickled-code", "no-json", "no-words", "no-weights"],
)
def test_broken_folders_are_named_and_no_code_is_run(folder: Path, spoil: Callable[[Path], Any], problem: str) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=problem) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert not (folder / "ran").exists()


def test_a_text_has_to_end(folder: Path) -> None:
    edit(folder / "config.json", lambda content: content.update(eos_token_id=None))
    edit(folder / "generation_config.json", lambda content: content.pop("eos_token_id"))
    with pytest.raises(CheckpointError, match="names no eos_token_id"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(folder: Path, value: float) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**ROTARY, tie_word_embeddings=False))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = value
    write_other(folder, model)
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.down_proj\.weight holds numbers that are"):
        load(folder)
