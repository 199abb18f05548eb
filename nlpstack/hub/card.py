"""The README.md of a model folder, made from facts the caller gives."""

import json
import re
from collections.abc import Mapping

from nlpstack.hub.families import FAMILIES, family_of
from nlpstack.model import GPT

_FRONT = ("name", "license", "language", "family")  # facts with a place of their own

_INTENDED = """\
For research and experiments. It writes what is likely after the text it is given and checks no facts: what it writes
may be false, and may repeat the bias, the private details and the offensive words of the text it was trained on. Do
not use it where people rely on its being right."""

_TOKENIZER = """\
`tokenizer.json`, where nlpstack wrote one, gives the same ids as nlpstack for every text that does not spell a special
token or a byte piece such as `<0x41>`, or contain U+2581."""


def shape_facts(model: GPT) -> dict[str, object]:
    """What a card can say of any model: family, parameters and shape."""
    config = model.config
    return {
        "family": family_of(config),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": config.n_layers,
        "dim": config.dim,
        "heads": config.n_heads,
        "context": f"{config.max_seq_len:,} tokens",
        "vocabulary": config.vocab_size,
    }


def model_card(facts: Mapping[str, object]) -> str:
    """The text of README.md.

    `name`, `license`, `language` and `family` (as families.family_of) have their places; every other fact is a line of
    the list, in the given order, a mapping (scores, say) a list below its line. Values are shown as they are.
    """
    family = facts.get("family")
    opens = isinstance(family, str) and family in FAMILIES
    front = {
        "library_name": "transformers" if opens else "nlpstack",
        "pipeline_tag": "text-generation",
        "tags": ["nlpstack", "text-generation"],
        **{key: facts[key] for key in ("license", "language") if facts.get(key)},
    }
    # JSON is YAML, and leaves nothing to quote wrongly.
    head = "".join(f"{key}: {json.dumps(value, default=str)}\n" for key, value in front.items())
    kind = f"of the {family} family" if opens else "of a shape that only nlpstack opens"
    parts = [
        f"---\n{head}---",
        f"# {_plain(facts.get('name') or 'A language model')}",
        f"A causal language model {kind}, written by nlpstack: it scores the next token of a text."
        if family
        else "A causal language model, written by nlpstack: it scores the next token of a text.",
        "## How it was made",
        "\n".join(_lines(facts)) or "Nothing is recorded.",
        "## Intended use and limits",
        _INTENDED,
        "## How to load it",
        '```python\nfrom nlpstack import load_model\n\nmodel = load_model("path/to/this/folder")\n```',
    ]
    if opens:
        parts.append(
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```'
        )
    parts.append(_TOKENIZER)
    return "\n\n".join(parts) + "\n"


def _lines(facts: Mapping[str, object]) -> list[str]:
    lines = []
    for key, value in facts.items():
        if key in _FRONT or value is None:
            continue
        if isinstance(value, Mapping):
            lines += [f"- {_plain(key)}:", *(f"  - {_plain(name)}: {_plain(part)}" for name, part in value.items())]
        else:
            lines.append(f"- {_plain(key)}: {_plain(value)}")
    return lines


def _plain(value: object) -> str:
    """The value on one line, with whatever Markdown or HTML would read as markup escaped."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", str(value)).strip()
    line = re.sub(r"([\\`*\[\]<>|~#&$])", r"\\\1", line)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # inside a word it marks nothing up
