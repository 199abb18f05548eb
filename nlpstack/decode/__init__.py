"""Decoding: from a model's next-token scores to text."""

from nlpstack.decode.loop import decode
from nlpstack.decode.sampling import Sampling
from nlpstack.decode.text import Generation, Timing

__all__ = ["Generation", "Sampling", "Timing", "decode"]
