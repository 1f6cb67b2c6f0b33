"""config.json by attribute, as scripts and transformers' Trainer read and change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openblip.checkpoints.json_files import to_json


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
