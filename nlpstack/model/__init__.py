"""The Transformer core and what stands on it."""

from nlpstack.model.bert import BERT
from nlpstack.model.gpt import GPT
from nlpstack.model.losses import IGNORE_INDEX
from nlpstack.model.transformer import AttentionMask, KVCache, Transformer, TransformerConfig, on_meta

LanguageModel = GPT | BERT  # what stands on the core

__all__ = ["BERT", "GPT", "LanguageModel"]
__all__ += ["IGNORE_INDEX", "AttentionMask", "KVCache", "Transformer", "TransformerConfig", "on_meta"]
