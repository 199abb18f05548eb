"""Text to token ids and back, without losing a byte."""

from nlpstack.tokenizer.base import Tokenizer, TokenizerConfig
from nlpstack.tokenizer.sentencepiece import SentencePieceTokenizer, load_tokenizer
from nlpstack.tokenizer.training import train_tokenizer

__all__ = ["SentencePieceTokenizer", "Tokenizer", "TokenizerConfig", "load_tokenizer", "train_tokenizer"]
