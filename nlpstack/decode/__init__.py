"""Decoding: from a model's next-token scores to text."""

from nlpstack.decode.loop import Generation, Timing, decode
from nlpstack.decode.sampling import Sampling

__all__ = ["Generation", "Sampling", "Timing", "decode"]
