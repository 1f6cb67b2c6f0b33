"""TorchScript archives: tensors are PyTorch's own, and what could run or unfold is refused."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from openblip.checkpoints.tensors.files import open_weights
from openblip.checkpoints.tools.inspect import inspect
from openblip.errors import CheckpointError


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight_half = nn.Parameter(torch.randn(3, 4).half())
        self.layers = nn.ModuleList((nn.Linear(4, 5), nn.BatchNorm1d(5)))
        self.register_buffer("input_resolution", torch.tensor(224))
        self.heads = 3

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x + self.weight_half.float().sum()


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Inner()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.turned = nn.Parameter(torch.randn(5, 3).T)

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.visual(x).sum() * self.scale + self.turned.sum()
        return summed


@pytest.fixture(scope="module", params=["trace", "script"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archives") / f"{request.param}.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Outer().eval()
        scripted: Any = torch.jit
        made = scripted.trace(module, torch.randn(2, 4)) if request.param == "trace" else scripted.script(module)
        made.save(path)
    return path


def test_tensors_are_those_that_pytorch_reads(archive: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state: dict[str, Tensor] = cast(Any, torch.jit).load(archive).state_dict()
    weights = open_weights(archive)
    assert weights.shapes.keys() == state.keys() and "visual.layers.1.running_var" in state
    for _ in range(2):
        for name, tensor in state.items():
            found = weights.read(name)
            assert found.dtype == tensor.dtype and torch.equal(found, tensor)
        weights.let_go()
    assert inspect(archive).parameters == sum(tensor.numel() for tensor in state.values())


def rewritten(archive: Path, folder: Path, change: Callable[[str, bytes], bytes], compress: str = "") -> Path:
    """The archive with some of its files changed."""
    path = folder / "changed.pt"
    with zipfile.ZipFile(archive) as before, zipfile.ZipFile(path, "w") as after:
        for entry in before.infolist():
            kind = zipfile.ZIP_DEFLATED if compress and entry.filename.endswith(compress) else zipfile.ZIP_STORED
            after.writestr(entry.filename, change(entry.filename, before.read(entry)), kind)
    return path


class Hostile:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def pickled(value: Any) -> bytes:
    kept = io.BytesIO()
    pickle.Pickler(kept, 2).dump(value)
    return kept.getvalue()


@pytest.mark.parametrize(
    ("end", "content", "message"),
    [
        ("/data.pkl", pickled(Hostile()), r"could run code \(it names .*print"),
        ("/data.pkl", pickled([1, 2]), "no named tensors|holds more than named tensors"),
        ("/data.pkl", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR.", "is broken"),
        ("/data.pkl", b"nonsense", "broken"),
        ("/data/0", b"", "cut short or damaged"),
        ("/data/1", b"\0" * 1000, "cut short or damaged"),
    ],
)
def test_what_is_no_model_is_refused(
    archive: Path, tmp_path: Path, end: str, content: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    changed = rewritten(archive, tmp_path, lambda name, old: content if name.endswith(end) else old)
    with pytest.raises(CheckpointError, match=message):
        open_weights(changed)
    assert "run" not in capfd.readouterr().out


@pytest.mark.parametrize("end", ["/data.pkl", "/data/0"])
def test_what_is_compressed_is_not_unfolded(archive: Path, tmp_path: Path, end: str) -> None:
    with pytest.raises(CheckpointError, match="is compressed"):
        open_weights(rewritten(archive, tmp_path, lambda name, old: old, compress=end))


def test_a_cut_archive_is_told(archive: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.pt"
    short.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="broken"):
        open_weights(short)
