"""Decoding: from a model's next-token scores to text."""

from nlpstack.decode.generation import Generation, Timing
from nlpstack.decode.loop import decode
from nlpstack.decode.sampling import Sampling

__all__ = ["Generation", "Sampling", "Timing", "decode"]
