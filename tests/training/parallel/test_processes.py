"""Two processes (gloo, on this machine) do what one does on the joined batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openblip.errors import OptionError
from openblip.training.parallel.processes import World
from openblip.training.recipe import load_recipe
from openblip.training.run import check_world, train
from tests.warm import Process, run

ROOT = Path(__file__).parents[3]

LOSSES = """
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
from safetensors.torch import save_file
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.qformer import QFormerConfig
from openblip.nn.vit import VitConfig
from openblip.training.parallel.processes import World, leave
from openblip.training.losses import Pairing, TextBatch, stage1_loss

torch.set_num_threads(1)
learn_candidates, share, out = sys.argv[1] == "True", float(sys.argv[2]), sys.argv[3]
if "RANK" in os.environ:
    dist.init_process_group("gloo")
world = World.current()
torch.manual_seed(0)
network = Blip2Network(Blip2Config(
    VitConfig(14, 14, width=12, depth=1, num_heads=2, mlp_width=12),
    QFormerConfig(12, num_queries=3, width=24, depth=3, num_heads=2, ffn_width=32, vocab_size=31, max_positions=20),
    shared_width=8,
))
for module in network.modules():
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.4)
nn.init.normal_(network.qformer.queries)
network.eval().vision.requires_grad_(False)
features = torch.randn(8, 5, 12)
lengths = torch.tensor([3, 7, 5, 4, 9, 3, 6, 8])
ids = torch.randint(1, 30, (8, 9))
image_ids = torch.tensor([0, 1, 2, 1, 3, 4, 0, 5])
rows = world.rows(8)
# Each process cuts its texts at its own longest.
longest = int(lengths[rows].max())
text = TextBatch(ids[rows, :longest], torch.arange(longest)[None] < lengths[rows, None])
pairing = Pairing(image_ids[rows], None, torch.Generator().manual_seed(3), share, learn_candidates, world)
normed = network.normalize(features[rows])
loss = stage1_loss(network, normed, text, 30, pairing)
loss.total.backward()
found = {}
for name, parameter in network.named_parameters():
    if parameter.grad is not None:
        # What DDP does.
        found["grad " + name] = world.total(parameter.grad) / world.size
for name in ("itc", "itm", "itg"):
    found[name] = (world.total(getattr(loss, name)) / world.size).reshape(1)
if world.rank == 0:
    save_file(found, out)
leave()
sys.stdout.flush()
os._exit(0)  # gloo's threads may outlive their group, and a process that ends in the usual way then crashes
"""

REWARDED = """
import os
import random
import sys
import torch
import torch.distributed as dist
from pathlib import Path
from safetensors.torch import save_file
from openblip.checkpoints.openblip.folder import load_native
from openblip.data.pairs import DataSource, ImageText
from openblip.data.captions_to_questions import Question
from openblip.training.loop.precision import Arithmetic
from openblip.training.input.batches import BatchRow
from openblip.training.parallel.processes import World, leave
from openblip.training.recipe import Mixture, Recipe, Stage
from openblip.training.tasks.stages import Stage2Task
from openblip.training.tasks.task import Runtime, Views
from openblip.training.loop.trainer import freeze_all_but, set_dropout

torch.set_num_threads(1)
folder, out, cases = sys.argv[1], sys.argv[2], sys.argv[3:]
if "RANK" in os.environ:
    dist.init_process_group("gloo")
world = World.current()
colours = "red green blue white black pink grey brown".split()
asked = (Question("what color is it?", "red", "color"),)
others = [ImageText(Path("other.jpg"), ("a grey dog",))]
recipe = Recipe(
    Stage.STAGE2, "out", [DataSource("a")], init="x", keep_matching=0.5, self_critical=3, train_decoder=True,
    mixture=Mixture(questions=0.3),
)
found = {}
for case in cases:
    parts = load_native(Path(folder))
    images = [
        ImageText(Path(f"{n}.jpg"), (f"a {word} ball", f"the ball is {word}"))
        if told == "1"
        else ImageText(Path(f"{n}.jpg"), questions=asked)
        for n, (word, told) in enumerate(zip(colours, case))
    ]
    task = Stage2Task(parts, recipe, images + others, Runtime(Arithmetic(torch.device("cpu")), world))
    # Captions of a random model have nothing in common with what people say: all would earn nothing.
    task.critic.reward.score = lambda name, text: float(sum(map(ord, name + text)) % 7)
    freeze_all_but(parts.network, task.trained())
    set_dropout(task.trained(), 0.0)
    torch.manual_seed(0)
    patches = torch.randn(8, 4, 1288)
    rows = world.rows(8)
    batch = [BatchRow(0, image, 0, random.Random(n), n) for n, image in enumerate(images)][rows]
    torch.manual_seed(world.rank)
    losses = task(batch, Views(patches=patches[rows]), torch.Generator().manual_seed(3))
    sum(losses.values()).backward()
    for name, value in losses.items():
        found[case + " " + name] = (world.total(value) / world.size).reshape(1)
    for name, parameter in parts.network.named_parameters():
        if parameter.grad is not None:
            found[case + " grad " + name] = world.total(parameter.grad) / world.size
if world.rank == 0:
    save_file(found, out)
leave()
sys.stdout.flush()
os._exit(0)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def together(arguments: list[str], count: int, succeed: bool = True, **environment: str) -> list[str]:
    """Run Python with these arguments in so many processes that know of each other; returns what each said."""
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    running = [
        Process(
            arguments,
            env={**shared, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
        for rank in range(count)
    ]
    said = [process.communicate(timeout=600)[0] for process in running]
    assert all((process.returncode == 0) is succeed for process in running), said
    return said


def alone_and_together(arguments: list[str], out: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a program writes to a file `out`, in one process and in two."""
    done = run(arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    one = load_file(out)
    out.unlink()
    together(arguments, 2)
    return one, load_file(out)


def check_two_train_as_one(recipe: Path, place: Path) -> None:
    """Train a recipe in one process and in two, in folders of `place`, and compare the weights."""
    alone = train(load_recipe(recipe, [f"output={place / 'one'}"]))
    together(["-m", "openblip", "train", str(recipe), f"output={place / 'two'}"], 2)
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, place / "two"))
    for name, value in one.items():
        if not name.endswith(("key.bias", "qkv.bias")):  # Adam makes steps of their rounding
            assert (two[name] - value).abs().mean() <= 2e-5, name


@pytest.mark.parametrize(("learn_candidates", "share"), [(False, 1.0), (True, 0.5)])
def test_the_losses_of_two_processes_are_those_of_one(tmp_path: Path, learn_candidates: bool, share: float) -> None:
    out = tmp_path / "losses.safetensors"
    one, two = alone_and_together(["-c", LOSSES, str(learn_candidates), str(share), str(out)], out)
    assert one.keys() == two.keys() and len(one) > 50
    for name, value in one.items():
        size = 5 * max(1.0, value.abs().max().item()) if name.startswith("grad") else 1.0
        assert (two[name] - value).abs().max().item() <= 1e-6 * size, name
    assert one["itm"].item() > 0 and one["grad vision_norm.weight"].abs().max() > 0


def test_rewards_and_matching_beside_stage_2_are_those_of_one_process(tmp_path: Path, tiny_model_folder: Path) -> None:
    """Also where processes have different numbers of described images (1), or none."""
    cases = ["11111111", "11111001", "11100000", "00000100", "00000000"]

    out = tmp_path / "losses.safetensors"
    one, two = alone_and_together(["-c", REWARDED, str(tiny_model_folder), str(out), *cases], out)
    for case in cases[:3]:
        # Those that have captions are rewarded, the others' answers are imitated.
        assert {f"{case} {name}" for name in ("itc", "itm", "cider")} <= one.keys()
        assert (f"{case} lm" in one) == ("0" in case)
        assert all(one[f"{case} grad {name}"].any() for name in ("itm_head.weight", "decoder.positions.weight"))
    assert "00000100 cider" in one and "00000000 cider" not in two
    for name, value in one.items():
        size = 5 * max(1.0, value.abs().max().item()) if "grad" in name else 1.0
        assert (two[name] - value).abs().max().item() <= 1e-6 * size, name
    # Every process has a gradient of whatever learns, or they would wait for one another.
    assert all(not two[name].any() for name in two.keys() - one.keys())


def test_what_processes_cannot_share_is_refused(tmp_path: Path, data: Path, tiny_model_folder: Path) -> None:
    recipe = write_recipe(tmp_path, data, tiny_model_folder, "stage2")
    two = World(0, 2)
    with pytest.raises(OptionError, match="a batch of 5 images cannot be shared by 2 processes"):
        check_world(load_recipe(recipe, ["batch_size=5"]), two)
    with pytest.raises(OptionError, match=r"self_critical does not go with parallel=fsdp.*use parallel=ddp"):
        check_world(load_recipe(recipe, ["self_critical=3", "parallel=fsdp"]), two)
    check_world(load_recipe(recipe, ["self_critical=3", "keep_matching=0.5"]), two)


def test_a_batch_that_cannot_be_shared_ends_every_process_with_a_sentence(
    tmp_path: Path, data: Path, tiny_model_folder: Path
) -> None:
    recipe = write_recipe(tmp_path, data, tiny_model_folder, "stage2")
    said = together(["-m", "openblip", "train", str(recipe), "batch_size=5"], 2, succeed=False)
    for text in said:
        words = " ".join(text.split())
        assert "cannot be shared by 2 processes: make batch_size a multiple of 2" in words
        assert "Traceback" not in text


def write_recipe(folder: Path, data: Path, model: Path, stage: str) -> Path:
    path = folder / f"{stage}.yaml"
    path.write_text(
        json.dumps(
            {
                "stage": stage,
                "init": model.as_posix(),
                "data_root": data.as_posix(),
                "cache": (folder / "features").as_posix(),
                "output": (folder / stage).as_posix(),
                "data": [{"name": "balls", "captions": "captions.jsonl", "questions": "vqa.jsonl"}],
                "mixture": {"questions": 0.5},
                "epochs": 2,
                "batch_size": 6,
                "dropout": 0.0,
                "device": "cpu",
                "threads": 1,
                "optimizer": {"lr": 2.0e-3, "warmup_steps": 2},
                "monitor": {"tensorboard": False},
            }
        )
    )
    return path


@pytest.mark.parametrize(
    ("stage", "extras"),
    [
        pytest.param("stage1", ["cache=null"], marks=pytest.mark.slow),
        ("stage2", ["train_decoder=true", "accumulate=2"]),
        pytest.param("stage1", ["parallel=fsdp", "ema=0.5"], marks=pytest.mark.slow),
        ("stage2", ["keep_matching=0.5", "self_critical=3", "train_decoder=true"]),
        pytest.param("stage2", ["keep_matching=0.5", "parallel=fsdp"], marks=pytest.mark.slow),
        pytest.param("stage1", ["train_vision=true", "vision_blocks=2"], marks=pytest.mark.slow),
        ("stage2", ["train_vision=true", "vision_blocks=2", "parallel=fsdp"]),
    ],
    ids=["images", "accumulate", "fsdp", "rewards", "fsdp-matching", "blocks", "fsdp-blocks"],
)
def test_two_processes_train_the_model_that_one_trains(
    tmp_path: Path, data: Path, tiny_model_folder: Path, stage: str, extras: list[str]
) -> None:
    recipe = str(write_recipe(tmp_path, data, tiny_model_folder, stage))
    alone = train(
        load_recipe(Path(recipe), [f"output={tmp_path / 'one'}", *[extra for extra in extras if "fsdp" not in extra]])
    )
    pair = tmp_path / "two"
    together(["-m", "openblip", "train", recipe, f"output={pair}", *extras], 2)
    weights = [load_file(folder / "model.safetensors") for folder in (alone, pair)]
    start = load_file(tiny_model_folder / "model.safetensors")
    moved = [name for name in start if not torch.equal(start[name], weights[0][name])]
    assert len(moved) > 10
    assert any(name.startswith("vision.") for name in moved) == ("train_vision=true" in extras)
    for name, value in weights[0].items():
        if name.endswith(("key.bias", "qkv.bias")):
            continue  # that of the keys moves no score: its gradient is rounding alone, which Adam makes steps of
        # Adam's first steps are of the size of the rate, however small a gradient is: where one is nearly zero,
        # rounding decides on its sign.
        gap = (weights[1][name].double() - value.double()).abs()
        assert gap.max().item() <= 2e-2 and gap.mean().item() <= 2e-5, (name, gap.max().item(), gap.mean().item())
