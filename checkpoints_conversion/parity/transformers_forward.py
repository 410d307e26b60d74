"""Forward pass with transformers' own model, one layer's weights in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.overrides import TorchFunctionMode

from emma.checkpoints_conversion.parameters import EMBEDDING, OUTPUT, name_of
from emma.checkpoints_conversion.parity.forward import device
from emma.checkpoints_conversion.weights import Weights
from emma.tools.inspection.models import loading, tokenizer_options

__all__ = ["TransformersForward", "WithoutWeights"]


class _Stop(Exception):  # noqa: N818  no error
    """Ends a forward pass after the layer that was wanted."""


class WithoutWeights(TorchFunctionMode):
    """Weights are made by `torch.empty` and need no memory here; what a model computes as it is built (rotary
    frequencies, scales) it keeps."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if function is torch.empty:
            options["device"] = "meta"
        return function(*args, **options)


class TransformersForward:
    """Reads `config.json` through transformers and builds the class that it names, so that its own reading is compared.

    The model is built without weights. Its own forward pass runs up to a layer, which gets its weights before and loses
    them after; the layers before it return what they returned then. No name of a class or of an argument is needed.

    Args:
        weights: parameters in a Hugging Face folder.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights, self._shape = weights, weights.shape
        self._device = device()
        folder = Path(weights.folder)
        with loading(folder):
            config = transformers.AutoConfig.from_pretrained(folder, **tokenizer_options(folder))
        config = config.get_text_config()
        config._attn_implementation = "eager"
        config.dtype = torch.float32
        with WithoutWeights():
            model: Any = transformers.AutoModelForCausalLM.from_config(config)
        self._base = model.eval().base_model
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self._device)
        self.library = f"transformers {transformers.__version__}"

    @contextmanager
    def _filled(self, module: torch.nn.Module, prefix: str) -> Iterator[Any]:
        """Lends a module its weights."""
        state = {name: self._parameter(prefix + name) for name in module.state_dict()}
        module.load_state_dict(state, strict=True, assign=True)
        yield module
        empty = {name: value.to("meta") for name, value in state.items()}
        module.load_state_dict(empty, strict=True, assign=True)

    def _parameter(self, name: str) -> torch.Tensor:
        with self._weights.open(name) as stored:
            return stored.to(self._device, torch.float32, copy=True)

    @torch.no_grad()
    def embed(self, ids: list[torch.Tensor]) -> list[torch.Tensor]:
        name = name_of(self._shape, EMBEDDING).removesuffix("weight")
        with self._filled(self._base.get_input_embeddings(), name) as module:
            return [module(one[None].to(self._device))[0] for one in ids]

    @torch.no_grad()
    def layer(self, index: int, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        with self._filled(self._base.layers[index], f"model.layers.{index}."):
            return [self._one(index, sequence[None])[0] for sequence in hidden]

    def _one(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Passes [1, tokens, hidden_size] through a layer, within the model's own forward pass."""
        found: list[torch.Tensor] = []

        def given(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (hidden, *args[1:])

        def taken(module: torch.nn.Module, args: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _Stop

        layer, others = self._base.layers[index], self._base.layers
        hooks = [layer.register_forward_pre_hook(given), layer.register_forward_hook(taken)]
        # The layers before pass on what they get.
        before = [(other, other.forward) for other in others[:index]]
        for other, _ in before:
            other.forward = lambda hidden_states, *args, **kwargs: hidden_states
        try:
            self._base(inputs_embeds=hidden, use_cache=False)
        except _Stop:
            pass
        finally:
            for other, _ in before:
                del other.forward
            for hook in hooks:
                hook.remove()
        return found[0]

    @torch.no_grad()
    def logits(self, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        output = self._parameter(name_of(self._shape, OUTPUT))
        with self._filled(self._base.norm, "model.norm.") as norm:
            return [torch.nn.functional.linear(norm(sequence[None])[0], output) for sequence in hidden]
