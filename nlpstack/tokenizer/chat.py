"""Conversations as tokens, by the chat template that a published tokenizer brings."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nlpstack.errors import ModelError
from nlpstack.tokenizer.base import Tokenizer, utf8
from nlpstack.tokenizer.published import PublishedTokenizer

ASSISTANT = "assistant"
Message = tuple[str, str]  # role ("system", "user", "assistant") and content
SECONDS = 20  # how long a template may take for so many texts:
_AT_ONCE = 1000


class Chat:
    """A tokenizer's chat template; a special token that a message spells is plain text, one of the template is not."""

    def __init__(self, tokenizer: Tokenizer | None, name: str) -> None:
        """Of the tokenizer of a model called `name`; ModelError if it has no template."""
        if not isinstance(tokenizer, PublishedTokenizer) or tokenizer.chat_template is None:
            cure = "take a model that was made for conversations"
            raise ModelError(f"{name}: its tokenizer has no chat template; {cure}")
        if find_spec("jinja2") is None:
            raise ModelError(f"{name}: its chat template needs `jinja2`; pip install 'nlpstack[hf]'")
        self.tokenizer, self.name, self.template = tokenizer, name, tokenizer.chat_template
        special = sorted(map(tokenizer.piece, tokenizer.special_ids), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")

    def prompts(self, conversations: Sequence[Sequence[Message]], places: Sequence[str] = ()) -> list[list[int]]:
        """The tokens of each conversation, up to where the assistant's next turn begins.

        `places` say in errors where each conversation is from.
        """
        return [self.tokenizer.encode(text) for text in self._texts([(one, True) for one in conversations], places)]

    def rows(
        self, conversations: Sequence[Sequence[Message]], places: Sequence[str] = ()
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The tokens (T,) of each conversation, int64, and which are the assistant's and its turns' ends, bool."""
        turns = [[at for at, (role, _) in enumerate(one) if role == ASSISTANT] for one in conversations]
        told = [(n, at) for n, ats in enumerate(turns) for at in ats]
        asked = [one for n, at in told for one in ((conversations[n][:at], True), (conversations[n][: at + 1], False))]
        texts = self._texts(asked, [places[n] for n, _ in told for _ in (0, 1)] if places else ())
        rows = []
        for number, ats in enumerate(turns):
            text, spans = "", []
            for _ in ats:
                before, after = next(texts), next(texts)
                if not before.startswith(text) or not after.startswith(before):
                    fault = "writes what was said in another way once more follows, so no turn can be told apart"
                    raise self._fault(fault, places[number : number + 1])
                text = after.rstrip()
                spans.append((len(before), len(text)))
            ids, offsets = self.tokenizer.encode_with_offsets(text)
            trained = [any(start < last and max(end, start + 1) > at for at, last in spans) for start, end in offsets]
            rows.append((np.array(ids, np.int64), np.array(trained, bool)))
        return rows

    def _fault(self, fault: str, place: Sequence[str]) -> ModelError:
        shown = "".join(filter(str.isprintable, " ".join(fault.split())))
        return ModelError(f"{''.join(f'{one}: ' for one in place)}{self.name}: its chat template {shown:.300}")

    def _texts(self, asked: Sequence[tuple[Sequence[Message], bool]], places: Sequence[str]) -> Iterator[str]:
        """Conversations as texts, special tokens as the tokenizer's library knows them; True: a turn is begun."""
        common: dict[str, Any] = {"tools": None, "documents": None}
        common |= {f"{role}_token": token for role, token in self.tokenizer.named.items()}
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            said = self.template + "".join(text for messages, _ in part for message in messages for text in message)
            utf8(said)
            # A character that stands nowhere, the first of those that mean nothing, breaks what spells a special token.
            mark = next(one for one in map(chr, range(0xFDD0, 0x110000)) if one not in said)
            broken = partial(re.compile(f"(?={self._special.pattern}).", re.DOTALL).sub, rf"\g<0>{mark}")
            conversations = [
                {**common, "messages": [{"role": broken(role), "content": broken(text)} for role, text in messages]}
                | {"add_generation_prompt": begun}
                for messages, begun in part
            ]
            for text in self._rendered(conversations, places[start : start + _AT_ONCE]):
                yield self._special.sub(rf"\g<0>{self.tokenizer.suffix}", text).replace(mark, "")

    def _rendered(self, conversations: list[dict[str, Any]], places: Sequence[str]) -> list[str]:
        """What the template makes of them; ModelError if it fails, or does not end."""
        program = [sys.executable, "-P", str(Path(__file__).with_name("render.py"))]
        sent = json.dumps({"template": self.template, "conversations": conversations}).encode()
        try:
            done = subprocess.run(program, input=sent, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise self._fault(f"does not end within {SECONDS} s", ()) from error
        texts: list[str] | None = None
        try:
            texts, fault = json.loads(done.stdout)
            "".join(texts or ()).encode()
        except UnicodeEncodeError:
            fault = "it writes lone surrogates, which no text holds"
        except ValueError:
            fault = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "ended by the system"
        if texts is None or fault:
            at = len(places) if texts is None else len(texts)
            raise self._fault(f"fails ({fault:.250})", places[at : at + 1])
        return texts
