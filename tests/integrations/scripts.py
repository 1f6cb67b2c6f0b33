"""Runs the scripts of scripts.txt as a notebook would, with what each of them takes for granted."""

from __future__ import annotations

import ast
import csv
import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

PAGE = Path(__file__).with_name("scripts.txt").read_text(encoding="utf-8")
SCRIPTS: dict[str, str] = dict(re.findall(r"^## (.+?)\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))

LIBRARIES = {
    "from transformers import": "from openblip.integrations.transformers import",
    "from lavis.models import": "from openblip.integrations.lavis import",
    "from lavis.processors import": "from openblip.integrations.lavis import",
    "from lavis.datasets.builders import": "from openblip.integrations.lavis import",
    "from lavis.common.registry import": "from openblip.integrations.lavis import",
}
"""The one line that a developer changes."""

CHANGES = {
    # Checkpoints: FOLDER is a small one, which its own test names.
    '"Salesforce/blip2-opt-2.7b"': "FOLDER",
    'model_type="pretrain_flant5xxl"': "model_type=FOLDER",
    'model_type="base_coco"': "model_type=FOLDER",
    'model_type="vqav2"': "model_type=FOLDER",
    'model_type="base"': "model_type=FOLDER",
    'model_type="pretrain_opt2.7b"': "model_type=FOLDER",
    '"blip2_image_text_matching", "pretrain"': '"blip2_image_text_matching", FOLDER',
    # Files.
    "Image.open(img)": "Image.open(PHOTO)",
    "'data/datasets/dataset_full.csv'": "TABLE",
    '"../../docs/_static/merlion.png"': "PHOTO",
    '"../docs/_static/merlion.png"': "PHOTO",
    '"image/monash1.jpeg"': "PHOTO",
    '"image/monash2.jpg"': "PHOTO",
    '"invoice.png"': "PHOTO",
    '"image_path")': "PHOTO)",
    '"example.jpg"': "PHOTO",
    # The device, and a type in which two libraries give the same ids on every one.
    '"cuda")': '"cpu")',
    'device="cuda"': 'device="cpu"',
    'Accelerator(mixed_precision="fp16")': "Accelerator(cpu=True)",
    '"cuda", torch.float16)': '"cpu", torch.float16)',
    "torch.float16": "torch.float32",
    # Mistakes.
    "generated_ids1": "generated_ids",
    'QUESTION: "': 'QUESTION = "',
}
DISTRIBUTED = {
    # One process on the CPU, with something to learn in it.
    '"nccl"': '"gloo"',
    "    torch.cuda.set_device(rank)\n": "",
    ".to(rank)": '.to("cpu")',
    "device_ids=[rank]": "device_ids=None",
    "            pass\n": "            losses.append(model(**batch).loss)\n            losses[-1].backward()\n",
    "mp.spawn(train, args=(world_size,), nprocs=world_size)": "train(0, 1)",
    # Whoever drops a group last waits for its threads, and DistributedDataParallel, the last one otherwise, does so
    # without letting go of the GIL, which one of them may be waiting for: with PyTorch 2.13, one run in hundreds hangs.
    "    dist.destroy_process_group()\n": "    groups.append(dist.group.WORLD)\n    dist.destroy_process_group()\n",
}
REFERENCE = {
    # Needs bitsandbytes; the small checkpoints have no matrix that is worth quantizing, so results stay the same.
    "load_in_8bit=True, ": "",
    # What transformers 5 lacks, and what it needs accelerate for.
    "from transformers import AdamW, get_linear": "from transformers import get_linear",
    ', device_map="auto"': "",
    ',\n    device_map="auto"': "",
    ',\n        device_map="auto"': "",
    ',\n            device_map="auto"': "",
    ',\n                                                      device_map="auto"': "",
}


@dataclass
class Run:
    """What a script left behind.

    Attributes:
        names: all that it defined; said: what it printed; shown: values of lines that are no statements, as a
            notebook shows them.
    """

    names: dict[str, Any]
    said: str = ""
    shown: list[Any] = field(default_factory=list)


def run(scripts: Sequence[str], names: dict[str, Any], *changes: dict[str, str], reference: bool = False) -> Run:
    """Run scripts one after the other, each seeing what the others defined.

    Args:
        names: what they take for granted.
        changes: beside CHANGES.
        reference: with the library that they were written for.
    """
    done = Run({"__name__": "script", "display": lambda image: image.size, **names})
    libraries = [REFERENCE] if reference else [LIBRARIES]
    heard = io.StringIO()
    with redirect_stdout(heard):
        for script in scripts:
            source = SCRIPTS[script]
            for table in (CHANGES, *changes, *libraries):
                for old, new in table.items():
                    source = source.replace(old, new)
            for node in ast.parse(source).body:
                if isinstance(node, ast.Expr):
                    value = eval(compile(ast.Expression(node.value), script, "eval"), done.names)
                    if value is not None:
                        done.shown.append(value)
                else:
                    exec(compile(ast.Module([node], []), script, "exec"), done.names)
    done.said = heard.getvalue()
    return done


# Stand-ins for what surrounds a model in a script: enough of each to hand over what the script hands over.


def module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    return made


def stand_ins(image_path: Path) -> dict[str, ModuleType]:
    """Libraries around the model, by name; every address on the web answers with `image_path`."""
    return {
        "requests": module("requests", get=lambda url, stream: SimpleNamespace(raw=image_path.open("rb"))),
        "gradio": module("gradio", Interface=Interface, Image=SimpleNamespace, Textbox=SimpleNamespace),
        "fastapi": module("fastapi", FastAPI=FastAPI, UploadFile=UploadFile, File=lambda default: None),
        "langchain": module("langchain"),
        "langchain.tools": module("langchain.tools", BaseTool=object),
        "langchain.agents": module(
            "langchain.agents",
            initialize_agent=lambda tools, llm, agent: {tool.name: tool for tool in tools},
            AgentType=SimpleNamespace(ZERO_SHOT_REACT_DESCRIPTION=0),
        ),
        "langchain.llms": module("langchain.llms", OpenAI=object),
        "cv2": module(
            "cv2",
            VideoCapture=Video,
            CAP_PROP_FPS=5,
            COLOR_BGR2RGB=4,
            cvtColor=lambda frame, code: np.ascontiguousarray(frame[:, :, ::-1]),
        ),
    }


class Interface(SimpleNamespace):
    def launch(self) -> None:
        pass


class FastAPI:
    def __init__(self) -> None:
        self.called: dict[str, Callable[..., Any]] = {}

    def on_event(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def keep(function: Callable[..., Any]) -> Callable[..., Any]:
            self.called[name] = function
            return function

        return keep

    post = on_event


class UploadFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    async def read(self) -> bytes:
        return self.path.read_bytes()


class Video:
    """Two frames of noise, their colours in the order of OpenCV."""

    def __init__(self, path: str) -> None:
        self.frames = list(np.random.default_rng(5).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8))

    def get(self, what: int) -> float:
        return 30.0

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def read(self) -> tuple[bool, Any]:
        return (True, self.frames.pop()) if self.frames else (False, None)

    def release(self) -> None:
        self.frames = []


def read_table(path: Path) -> list[list[str]]:
    """Rows of a table without its head, as far as a script looks at them."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def write_table(path: Path, image_paths: Sequence[Path]) -> Path:
    path.write_text("image\n" + "".join(f"{image_path}\n" for image_path in image_paths), encoding="utf-8")
    return path


def opened(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")
