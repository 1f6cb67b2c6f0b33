"""config.json by attribute, as scripts and transformers' Trainer read and change it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.checkpoints.json_files import read_json, to_json
from openblip.checkpoints.openblip.file_names import CONFIG_FILE
from openblip.errors import OptionError, given_path


def config_content(config: object) -> dict[str, Any]:
    """What a config says: an object of transformers or of a model here, a dictionary, or a folder's or file's path.

    Raises:
        CheckpointError: the file is missing or broken.
        OptionError: nothing of these.
    """
    if isinstance(config, str | Path):
        path = given_path("config", config)
        return read_json(path / CONFIG_FILE if path.is_dir() else path)
    content: object = config.to_dict() if hasattr(config, "to_dict") and not isinstance(config, type) else config
    if not isinstance(content, Mapping):
        raise OptionError(f"config is {str(config)[:80]}: give a config of transformers, a dictionary, or a path")
    return dict(content)


class ModelConfig:
    """config.json by attribute, groups within groups. What a script sets is kept here; it changes no weights."""

    _content: dict[str, Any]

    def __init__(self, content: Mapping[str, Any]) -> None:
        groups = {name: ModelConfig(value) if isinstance(value, dict) else value for name, value in content.items()}
        vars(self)["_content"] = groups

    def __getattr__(self, name: str) -> Any:
        content = vars(self).get("_content", {})
        if name not in content:
            raise AttributeError(f"this model's config has no {name!r}")
        return content[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._content[name] = value

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> ModelConfig:
        """Of the language model; of a model that matches the whole."""
        found: ModelConfig = self.get("text_config", self)
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            name: value.to_dict() if isinstance(value, ModelConfig) else value for name, value in self._content.items()
        }

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        """As `to_dict`; `use_diff` changes nothing."""
        return to_json(self.to_dict())
