"""The Transformer core and what stands on it."""

from nlpstack.model.gpt import GPT
from nlpstack.model.kv_cache import KVCache
from nlpstack.model.losses import IGNORE_INDEX
from nlpstack.model.transformer import AttentionMask, Transformer, TransformerConfig

__all__ = ["GPT", "IGNORE_INDEX", "AttentionMask", "KVCache", "Transformer", "TransformerConfig"]
