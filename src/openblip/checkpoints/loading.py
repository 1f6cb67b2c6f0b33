"""A model's name or folder -> the model, whichever files it lies in."""

from __future__ import annotations

from pathlib import Path

import torch

from openblip.checkpoints.download import REPOSITORY_NAME, download
from openblip.checkpoints.lavis_files import files_of, load_lavis
from openblip.checkpoints.native import load_native
from openblip.checkpoints.parts import ModelParts
from openblip.checkpoints.progress import download_progress
from openblip.checkpoints.registry import bundled_folder, folder_kind
from openblip.checkpoints.transformers_folder import load_transformers
from openblip.checkpoints.zoo import BUNDLED, ZooModel, did_you_mean, find_model
from openblip.errors import CheckpointError, OptionError


def load_parts(
    name: str | Path,
    *,
    checkpoint: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ModelParts:
    """Read a model; what is missing of an official one is downloaded first.

    Args:
        name: "mini", a folder, a name of `openblip models`, or a repository of the hub. A folder of that name wins.
        checkpoint: a `.pth` that LAVIS saved, for a model of LAVIS' to read instead of the official one.

    Raises:
        CheckpointError: no such model, or a file is missing, broken or does not fit.
        DownloadError: files cannot be had.
        OptionError: a checkpoint for a model that is not LAVIS'.
    """
    if name == BUNDLED:
        _refuse(checkpoint, BUNDLED)
        folder = bundled_folder(BUNDLED)
        if not folder.is_dir():
            raise CheckpointError(f"the model {name} is not in this installation: install the openblip wheel again")
        return load_native(folder)
    path = Path(name).expanduser()
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file: give a model's folder, or a LAVIS model's name with checkpoint={str(path)!r}"
        )
    if path.is_dir():
        _refuse(checkpoint, str(path))
        return _load_folder(path, dtype, device)
    model = find_model(str(name))
    if isinstance(name, Path) or (model is None and not REPOSITORY_NAME.fullmatch(name)):
        raise CheckpointError(f"{name} is neither a model folder nor a known model: {did_you_mean(str(name))}")
    if model is None or model.origin == "transformers":
        _refuse(checkpoint, name)
    with download_progress() as progress:
        found = download(name, progress=progress)
    if isinstance(model, ZooModel) and model.origin == "lavis":
        return load_lavis(model, files_of(found, checkpoint), dtype, device)
    return _load_folder(found[0].path, dtype, device)


def _load_folder(folder: Path, dtype: torch.dtype, device: torch.device | str) -> ModelParts:
    if folder_kind(folder) == "transformers":
        return load_transformers(folder, dtype, device)
    return load_native(folder)


def _refuse(checkpoint: Path | None, name: str) -> None:
    if checkpoint is not None:
        raise OptionError(
            f"{name} is a whole model: a checkpoint goes with a LAVIS name, as blip2_opt/pretrain_opt2.7b"
        )
