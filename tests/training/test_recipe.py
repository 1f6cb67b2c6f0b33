"""Recipes: every file in recipes/ is valid, every wrong key or value is one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.errors import OpenBlipError, OptionError
from openblip.training.recipe import Precision, Stage, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{depth}: &a{depth} [{', '.join([f'*a{depth - 1}'] * 10)}]\n" for depth in range(1, 10)
)
TRAINING = sorted(path for kind in ("mini", "train") for path in (RECIPES / kind).rglob("*.yaml"))


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.data
    assert recipe.epochs > 0


def test_the_recipes_of_mini_form_a_chain() -> None:
    chain = [load_recipe(path) for path in sorted((RECIPES / "mini").glob("*.yaml"))]
    assert [recipe.stage for recipe in chain] == [Stage.LANGUAGE, *[Stage.STAGE1] * 2, *[Stage.STAGE2] * 6]
    before = [*[recipe.output for recipe in chain[:4]], "runs/mini/frozen", chain[5].output]
    assert [recipe.init for recipe in chain[1:]] == [*before, "runs/mini/blocks", chain[7].output]
    assert [recipe.vision_blocks for recipe in chain] == [0] * 5 + [6] * 4
    for recipe in chain:
        for source in recipe.data:
            held_out = {"coco": 10, "daquar": 5}.get(source.name, 0)
            assert source.held_out == held_out, "a recipe would train on evaluation images"
            assert source.name != "flickr8k" or source.split == "train"


def write(path: Path, text: str) -> Path:
    path.write_text("stage: stage1\noutput: out\ninit: model\ndata: [{name: a, captions: a.jsonl}]\n" + text)
    return path


def test_overrides_reach_nested_keys(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path / "r.yaml", "optimizer: {lr: 0.1}\n"),
        ["optimizer.lr=5e-1", "precision=BF16", "data.0.views=4", "seed=7"],
    )
    assert (recipe.optimizer.lr, recipe.precision, recipe.seed) == (0.5, Precision.BF16, 7)
    assert recipe.data[0].views == 4


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("epoch: 3\n", [], "epoch"),
        ("optimizer: {learning_rate: 1}\n", [], "learning_rate"),
        ("epochs: many\n", [], "many"),
        ("", ["precision=int4"], "precision"),
        ("a: [\n", [], "r.yaml"),
        ("", ["colour=red"], "colour"),
        ("", ["patch_share=0"], "patch_share is 0"),
        ("", ["dropout=1"], "dropout is 1"),
        ("", ["drop_path=1", "train_vision=true"], "drop_path is 1"),
        ("", ["drop_path=0.1"], "give train_vision=true"),
        ("", ["optimizer.lr=.nan"], "optimizer.lr is nan"),
        ("", ["optimizer.lr=-1"], "optimizer.lr is -1"),
        ("", ["optimizer.beta1=1"], "optimizer.beta1 is 1"),
        ("", ["optimizer.decay_rate=0.9"], "decay_rate is for optimizer.schedule=linear_warmup_step_lr"),
        ("", ["optimizer.decay_rate=0", "optimizer.schedule=linear_warmup_step_lr"], "decay_rate is 0"),
        ("", ["evaluation.every=0"], "evaluation.every is 0"),
        ("", ["evaluation.patience=1"], "give evaluation.data"),
        ("", ["evaluation.metric=cider"], "evaluation.metric is 'cider': it is none of text_to_image_at_1"),
        ("", ["stage=stage2", "evaluation.metric=beauty"], "'beauty': it is none of bleu_1, bleu_2"),
        ("", ["stage=stage2", "evaluation.metric=meteor"], "'meteor': it is none of"),
        ("", ["threads=-3"], "threads is -3"),
        ("", ["data.0.views=0"], "views of a is 0"),
        ("", ["data.0.word_dropout=1"], "word_dropout of a is 1"),
        ("", ["mixture.questions=2"], "mixture.questions is 2"),
        ("", ["batch_size=1"], "batch_size is 1"),
        ("", ["self_critical=3"], "self_critical is for stage2"),
        ("lora: {targets: [language_model]}\n", [], "stage1 does not use"),
        ("", ["stage=stage2", "self_critical=1"], "at least 2"),
        ("", ["epochs"], "key=value"),
        ("epochs: 3\nepochs: 4\n", [], "duplicate key epochs"),
        ("optimizer: 5\n", [], "optimizer has keys of its own"),
        ("optimizer:\n\tlr: 1\n", [], "line 6"),
        ("name: !!python/object/apply:os.system [ls]\n", [], "could not determine a constructor"),
        ("name: ${name}\n", [], "name: Recursive"),
        ("x: &x [*x]\n", [], "an alias stands within what it stands for"),
        ("x: " + "[" * 3000 + "]" * 3000, [], "nested too deeply"),
        (BOMB, [], "its aliases unfold to more than 10,000 values"),
        ('name: "a\\0b"\n', [], "name holds a character of the code 0"),
        ("seed: 99999999999999999999\n", [], "seed is 99999999999999999999: it must fit 64 bits"),
        ("", ["output=' '"], "output is empty"),
        ("", ["data.x=1"], "r.yaml: "),
        ("", ["epochs=2024-99-99"], "epochs: 2024-99-99 is no whole number"),
        ("", ["lora.rank=8"], "begin it with lora={...}"),
        ("", ["optimizer.schedule=step"], "optimizer.schedule"),
        ("", ["name=[" + "[" * 2000], "nested too deeply"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, text: str, overrides: list[str], words: str) -> None:
    with pytest.raises(OpenBlipError, match=words) as caught:
        load_recipe(write(tmp_path / "r.yaml", text), overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "stage is missing: every recipe has to say it"),
        (b"- a\n- b\n", "is no recipe"),
        (b"caf\xe9: 1\n", "is not UTF-8"),
        (
            b"stage: stage1\noutput: a\ninit: m\ndata: {name: a}\n",
            "data is a list: begin each of its entries with a dash",
        ),
        (b"stage: stage1\noutput: a\ninit: m\ndata: a.csv\n", "data is a list: begin"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(OpenBlipError) as caught:
        load_recipe(path)
    told = str(caught.value)
    assert told.startswith(str(path)) and words in told and "\n" not in told


def test_the_home_folder_in_paths(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "cache: ~/features\nprompt: ~ is a tilde\n")
    recipe = load_recipe(path, ["output=~/new", "data.0.images=~/photos"])
    home = str(Path.home())
    assert recipe.cache == f"{home}/features" and recipe.output == f"{home}/new"
    assert recipe.data[0].images == f"{home}/photos"
    assert recipe.prompt == "~ is a tilde"


def test_metrics_that_data_may_give(tmp_path: Path) -> None:
    for stage, metric in (("stage1", "mean"), ("stage2", "cider"), ("stage2", "exact"), ("stage2", "accuracy (color)")):
        recipe = load_recipe(write(tmp_path / "r.yaml", ""), [f"stage={stage}", f"evaluation.metric={metric}"])
        assert recipe.evaluation.metric == metric


def test_init_and_new_exclude_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "new: {vision: a.pth, bert: b}\n")
    with pytest.raises(OptionError, match="either init"):
        load_recipe(path)
    with pytest.raises(OptionError, match="no source"):
        load_recipe(write(tmp_path / "s.yaml", ""), ["data=[]"])
    with pytest.raises(OpenBlipError, match="no recipe"):
        load_recipe(tmp_path / "none.yaml")
