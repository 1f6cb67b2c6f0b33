"""What transformers' Trainer, accelerate and peft ask of a model besides its results."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor, nn

from openblip.errors import OptionError, given_path
from openblip.integrations.transformers.names import TranslatedModule
from openblip.integrations.transformers.options import SaveOptions, byte_count, refuse_unknown

if TYPE_CHECKING:
    from typing_extensions import Unpack

SHARD_SIZE = "50GB"
"""transformers' own limit for what it saves of a model."""
BASE_CLASS = "transformers.modeling_utils"
CHECKPOINTED = "gradient_checkpointing"
LOSS_TYPES = ("ForConditionalGeneration", "ForQuestionAnswering")
"""transformers' rules, by how the names of classes end."""


class Trainable(TranslatedModule, ABC):
    """A model that transformers' Trainer trains and saves as one of its own.

    Attributes:
        main_input_name: what the Trainer measures batches by.
        loss_type: whose rule for counting labels it follows; that of transformers' class of the same name.
    """

    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _keys_to_ignore_on_save: frozenset[str] = frozenset()

    @property
    def __class__(self) -> Any:
        """For `isinstance` also one of transformers' models, once that is imported.

        Its Trainer saves others as bare weights without a config. No method of theirs is inherited.
        """
        theirs = sys.modules.get(BASE_CLASS)
        kind: Any = type(self)
        return kind if theirs is None else _as_theirs(kind, theirs.PreTrainedModel)

    @__class__.setter
    def __class__(self, kind: Any) -> None:
        object.__dict__["__class__"].__set__(self, kind)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle compares `__class__` with what it is to build.
        return _empty, (type(self),), self.__dict__

    def is_custom_code(self) -> bool:
        """That transformers' own renamings of weights are not meant for this model."""
        return True

    @property
    def loss_type(self) -> str | None:
        return next((kind for kind in LOSS_TYPES if type(self).__name__.endswith(kind)), None)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Weights; ours has none for EVA's key biases, which are zero."""
        left_out = [module for module in self.modules() if exclude_embeddings and isinstance(module, nn.Embedding)]
        excluded = {id(table.weight) for table in left_out}
        return sum(
            tensor.numel()
            for tensor in self.parameters()
            if (tensor.requires_grad or not only_trainable) and id(tensor) not in excluded
        )

    def estimate_tokens(self, input_dict: Mapping[str, Any]) -> int:
        """Numbers of the main input."""
        found = input_dict.get(self.main_input_name)
        return found.numel() if isinstance(found, Tensor) else 0

    def floating_point_ops(self, input_dict: Mapping[str, Any], exclude_embeddings: bool = True) -> int:
        """Operations of a forward and a backward pass, by transformers' rule of thumb."""
        return 6 * self.estimate_tokens(input_dict) * self.num_parameters(exclude_embeddings=exclude_embeddings)

    def tie_weights(self, **options: object) -> None:
        """Nothing: what is tied is one tensor here."""

    def get_output_embeddings(self) -> nn.Module | None:
        """What makes scores of hidden states; None for a model that only matches."""
        return None

    @abstractmethod
    def get_input_embeddings(self) -> nn.Module:
        """The table of words."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """The table of words as it is. Raises OptionError when it would have to grow or shrink."""
        table = self.get_input_embeddings()
        rows = int(table.weight.shape[0])  # type: ignore[index]
        wanted = rows if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
        if wanted != rows:
            raise OptionError(
                f"the word table has {rows} rows and cannot be resized to {wanted} here: resize it with transformers, "
                "save_pretrained, and load that folder"
            )
        return table

    @property
    def is_activation_checkpointing(self) -> bool:
        return any(getattr(module, CHECKPOINTED, False) for module in self.modules())

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.is_activation_checkpointing

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, object] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """In training, keep only what enters each layer, and compute the rest again in the backward pass.

        Args:
            gradient_checkpointing_kwargs: options of `torch.utils.checkpoint.checkpoint`, which change no result.

        Raises:
            OptionError: only some layers are meant, or activations are to be kept elsewhere.
        """
        if every_n_layers != 1 or offload:
            name = "offload" if offload else "every_n_layers"
            raise OptionError(f"{name} is not known here: gradient checkpointing holds for every layer, on its device")
        self._checkpoint_gradients(True)

    def gradient_checkpointing_disable(self) -> None:
        self._checkpoint_gradients(False)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, object] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """As `gradient_checkpointing_enable`, by its newer name."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def activation_checkpointing_disable(self) -> None:
        self._checkpoint_gradients(False)

    def _checkpoint_gradients(self, wanted: bool) -> None:
        for module in self.modules():
            if hasattr(module, CHECKPOINTED):
                setattr(module, CHECKPOINTED, wanted)

    def enable_input_require_grads(self) -> None:
        """Have gradients pass through the word table, as adapters over checkpointed layers need it elsewhere."""
        self.disable_input_require_grads()
        self._input_hook = self.get_input_embeddings().register_forward_hook(_require_grads)

    def disable_input_require_grads(self) -> None:
        hook = vars(self).pop("_input_hook", None)
        if hook is not None:
            hook.remove()

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        max_shard_size: int | str = SHARD_SIZE,
        safe_serialization: bool = True,
        **options: Unpack[SaveOptions],
    ) -> None:
        """Write a folder that transformers and OpenBLIP load, the vocabulary included if it is known.

        Args:
            is_main_process: False writes nothing: another process of the same run does.
            state_dict: written instead of the model's own tensors; names of `state_dict` or of transformers. What it
                lacks is the model's own.
            max_shard_size: bytes, or as "5GB".

        Raises:
            CheckpointError: transformers has no such model.
            OptionError: no such size, pickled files or an upload are asked for, or another keyword.
        """
        refuse_unknown("save_pretrained", options, SaveOptions)
        if not safe_serialization:
            raise OptionError("safe_serialization is False: weights are written as safetensors alone")
        if options.get("push_to_hub"):
            _refuse_upload("push_to_hub=True")
        if options.get("variant"):
            raise OptionError(f"variant is {options.get('variant')!r}: files have their plain names here, leave it out")
        size = byte_count(max_shard_size)
        if not is_main_process:
            return
        state = None if state_dict is None else self.network_state(state_dict)
        self._write(given_path("save_directory", save_directory), size, state)

    @abstractmethod
    def _write(self, folder: Path, shard_bytes: int, state: Mapping[str, Tensor] | None) -> None:
        """A folder, of the network's own tensors or of `state` by the network's names."""

    def push_to_hub(self, *arguments: object, **options: object) -> NoReturn:
        """Raises OptionError: save the model, and upload the folder."""
        _refuse_upload("push_to_hub")


def _refuse_upload(call: str) -> NoReturn:
    raise OptionError(f"{call} uploads nothing here: save_pretrained a folder, and run `hf upload NAME FOLDER`")


def _require_grads(module: nn.Module, inputs: object, output: Tensor) -> None:
    output.requires_grad_(True)


def _empty(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


@cache
def _as_theirs(kind: Any, theirs: Any) -> Any:
    """A class below both, with our methods before theirs: what a model is taken for, and nothing is ever made of."""
    return type(kind.__name__, (kind, theirs), {"__module__": kind.__module__})
