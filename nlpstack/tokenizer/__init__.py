"""Text to token ids and back; our own tokenizers lose no byte of it."""

from nlpstack.tokenizer.base import Tokenizer, TokenizerConfig
from nlpstack.tokenizer.loading import load_tokenizer
from nlpstack.tokenizer.sentencepiece import SentencePieceTokenizer
from nlpstack.tokenizer.training import train_tokenizer

__all__ = ["SentencePieceTokenizer", "Tokenizer", "TokenizerConfig", "load_tokenizer", "train_tokenizer"]
