"""Tokens' bytes into text that only ever grows, up to the first stop string."""

import codecs


class TextStream:
    """The text of one row: what is certain comes out, what may still change is held back.

    Held back are the bytes of an unfinished character and what could become a stop string. The first stop string is
    the one complete first, so how the text is cut into tokens does not matter; bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stop = stop
        self.stopped = False  # a stop string came; the text is complete
        self.text = ""  # all that came out
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def copy(self) -> "TextStream":
        """A stream that goes on from here on its own."""
        other = TextStream(self.stop)
        other.stopped, other.text, other._held = self.stopped, self.text, self._held
        other._decoder.setstate(self._decoder.getstate())
        return other

    def push(self, data: bytes, *, final: bool = False) -> str:
        """What these further bytes add to the text; with `final`, nothing is held back any longer."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(data, final)
        found = [(start + len(stop), start) for stop in self.stop if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            size = min(found)[1]
        else:
            size = len(self._held) - (0 if final else self._possible_stop())
        added, self._held = self._held[:size], self._held[size:]
        self.text += added
        return added

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self.stop:
            sizes = range(min(len(stop) - 1, len(self._held)), longest, -1)
            longest = next((size for size in sizes if self._held.endswith(stop[:size])), longest)
        return longest
