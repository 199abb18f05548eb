"""Conversations as tokens, by the chat template that a published tokenizer brings."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nlpstack.errors import ModelError
from nlpstack.tokenizer.base import ROLES, Tokenizer
from nlpstack.tokenizer.published import PublishedTokenizer

ASSISTANT = "assistant"
Message = tuple[str, str]  # role ("system", "user", "assistant") and content
_SECONDS, _A_SECOND = 10, 1000  # how long templates may take: for what there is always, and conversations more a second
_NO_CHARACTERS = map(chr, range(0xFDD0, 0xFDF0))  # code points that stand for nothing, ever


class Chat:
    """A tokenizer's chat template; a special token that a message spells is plain text, one of the template is not."""

    def __init__(self, tokenizer: Tokenizer | None, name: str) -> None:
        """Of the tokenizer of a model called `name`; ModelError if it has no template."""
        if not isinstance(tokenizer, PublishedTokenizer) or tokenizer.chat_template is None:
            raise ModelError(
                f"{name}: its tokenizer has no chat template; take a model that was made for conversations"
            )
        if find_spec("jinja2") is None:
            raise ModelError(f"{name}: its chat template needs `jinja2`; pip install 'nlpstack[hf]'")
        self.tokenizer, self.name = tokenizer, name
        self._special = re.compile(
            "|".join(map(re.escape, sorted(map(tokenizer.piece, tokenizer.special_ids), key=len)[::-1]))
        )

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """The tokens of each conversation, up to where the assistant's next turn begins."""
        return [self.tokenizer.encode(text) for text in self._texts([(one, True) for one in conversations])]

    def rows(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The tokens (T,) of each conversation, int64, and which are the assistant's and its turns' ends, bool."""
        turns = [[at for at, (role, _) in enumerate(one) if role == ASSISTANT] for one in conversations]
        told = [(one, at) for one, ats in zip(conversations, turns, strict=True) for at in ats]
        wanted = [part for one, at in told for part in ((one[:at], True), (one[: at + 1], False))]
        texts = iter(self._texts(wanted))
        rows = []
        for ats in turns:
            text, spans = "", []
            for _ in ats:
                before, after = next(texts), next(texts)
                if not before.startswith(text) or not after.startswith(before):
                    fault = "its chat template writes earlier turns in another way once later ones follow"
                    raise ModelError(f"{self.name}: {fault}, so what the assistant said cannot be told apart")
                text = after.rstrip()
                spans.append((len(before), len(text)))
            ids, starts = self.tokenizer.encode_with_starts(text)
            trained = [any(first <= start < end for first, end in spans) for start in starts]
            rows.append((np.array(ids, np.int64), np.array(trained, bool)))
        return rows

    def _texts(self, asked: Sequence[tuple[Sequence[Message], bool]]) -> list[str]:
        """Conversations as texts, special tokens as the tokenizer's library knows them; True: a turn is begun."""
        said = "".join(content for messages, _ in asked for _, content in messages)
        mark = next(one for one in _NO_CHARACTERS if one not in said)

        def plain(content: str) -> str:
            return self._special.sub(lambda found: found[0][0] + mark + found[0][1:], content)

        conversations = [
            {
                "messages": [{"role": role, "content": plain(text)} for role, text in told],
                "add_generation_prompt": begun,
            }
            for told, begun in asked
        ]
        ids = {role: getattr(self.tokenizer, f"{role}_id") for role in ROLES}
        tokens = {f"{role}_token": self.tokenizer.piece(one) for role, one in ids.items() if one is not None}
        texts = self._rendered({"conversations": conversations, "tokens": tokens})
        suffix = self.tokenizer.hash
        return [self._special.sub(lambda found: found[0] + suffix, text).replace(mark, "") for text in texts]

    def _rendered(self, asked: dict[str, Any]) -> list[str]:
        """What the template makes of them; ModelError if it fails, or does not end."""
        program = [sys.executable, "-P", str(Path(__file__).with_name("render.py"))]
        sent = json.dumps({"template": self.tokenizer.chat_template, **asked}).encode()
        seconds = _SECONDS + len(asked["conversations"]) // _A_SECOND
        try:
            done = subprocess.run(program, input=sent, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"{self.name}: its chat template does not end within {seconds} s") from error
        if done.returncode:
            fault = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "ended by the system"
            raise ModelError(f"{self.name}: its chat template fails ({fault:.300})")
        return list(map(str, json.loads(done.stdout)))
