"""The Transformer core and what stands on it."""

import copy
from typing import Any

import torch
from torch import nn

from nlpstack.model.bert import BERT
from nlpstack.model.gpt import GPT
from nlpstack.model.losses import IGNORE_INDEX
from nlpstack.model.transformer import AttentionMask, KVCache, Transformer, TransformerConfig, on_meta

LanguageModel = GPT | BERT  # what stands on the core

__all__ = ["BERT", "GPT", "LanguageModel", "twin"]
__all__ += ["IGNORE_INDEX", "AttentionMask", "KVCache", "Transformer", "TransformerConfig", "on_meta"]


def twin(model: LanguageModel, device: str) -> LanguageModel:
    """A copy of a model with weights on a device that are not set."""
    known: dict[int, Any] = {id(model.tokenizer): model.tokenizer}  # what is not copied
    for old in model.parameters():
        known[id(old)] = nn.Parameter(torch.empty(old.shape, dtype=old.dtype, device=device), old.requires_grad)
    return copy.deepcopy(model, known)
