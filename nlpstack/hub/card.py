"""The README.md of a model folder, made from facts the caller gives."""

import json
import re
from collections.abc import Mapping

from nlpstack.hub.families import FAMILIES, family_of, model_heads
from nlpstack.model import BERT, LanguageModel

_FRONT = ("name", "license", "language", "family", "outputs")  # facts with a place of their own

_INTENDED = """\
For research and experiments. It writes what is likely after the text it is given and checks no facts: what it writes
may be false, and may repeat the bias, the private details and the offensive words of the text it was trained on. Do
not use it where people rely on its being right."""

_INTENDED_ENCODER = """\
For research and experiments, and to be fine-tuned for a task. It writes no text. What it says of one follows what is
likely and not what is true, and may repeat the bias and the offensive words of the text it was trained on. Do not use
it where people rely on its being right."""

# What an encoder with a head is for, and the class of transformers that opens it; the first that a model has counts.
_TASKS = {
    "sequence": ("text-classification", "AutoModelForSequenceClassification"),
    "tokens": ("token-classification", "AutoModelForTokenClassification"),
    "mlm": ("fill-mask", "AutoModelForMaskedLM"),
    "nsp": ("feature-extraction", "AutoModelForNextSentencePrediction"),
}
_DOES = {
    "pooler": "gives one vector of the whole",
    "mlm": "guesses hidden tokens",
    "nsp": "tells whether one text follows another",
    "sequence": "gives labels to a text",
    "tokens": "gives a label to each token",
}

_TOKENIZER = """\
`tokenizer.json`, where nlpstack wrote one, gives the same ids as nlpstack for every text that does not spell a special
token or a byte piece such as `<0x41>`, or contain U+2581."""


def shape_facts(model: LanguageModel) -> dict[str, object]:
    """What a card can say of any model: family, a BERT's heads as `outputs`, parameters and shape."""
    config, heads = model.config, model_heads(model)
    return {
        "family": family_of(config, heads),
        **({"outputs": heads} if isinstance(model, BERT) else {}),
        **({"adapts": model.base[0]} if model.base else {}),  # with adapters: the folder of the base
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": config.n_layers,
        "dim": config.dim,
        "heads": config.n_heads,
        "context": f"{config.max_seq_len:,} tokens",
        "vocabulary": config.vocab_size,
    }


def model_card(facts: Mapping[str, object]) -> str:
    """The text of README.md.

    `name`, `license`, `language` and `family` (as families.family_of) have their places, and so have `outputs`, the
    heads of a BERT, without which the card is a GPT's; every other fact is a line of the list, in the given order, a
    mapping (scores, say) a list below its line. Values are shown as they are.
    """
    family, outputs = facts.get("family"), facts.get("outputs")
    heads = tuple(outputs) if isinstance(outputs, tuple | list) else None
    opens = family in FAMILIES
    task, loader = ("text-generation", "AutoModelForCausalLM") if heads is None else _task(heads)
    front = {
        "library_name": "nlpstack" if not opens else "peft" if facts.get("adapts") else "transformers",
        "pipeline_tag": task,
        "tags": ["nlpstack", task],
        **{key: facts[key] for key in ("license", "language") if facts.get(key)},
    }
    # JSON is YAML, and leaves nothing to quote wrongly.
    head = "".join(f"{key}: {json.dumps(value, default=str)}\n" for key, value in front.items())
    parts = [
        f"---\n{head}---",
        f"# {_plain(facts.get('name') or 'A language model')}",
        _description(family, heads, opens=opens),
        "## How it was made",
        "\n".join(_lines(facts)) or "Nothing is recorded.",
        "## Intended use and limits",
        _INTENDED if heads is None else _INTENDED_ENCODER,
        "## How to load it",
        '```python\nfrom nlpstack import load_model\n\nmodel = load_model("path/to/this/folder")\n```',
    ]
    if opens and not facts.get("adapts"):
        parts.append(
            f"```python\nfrom transformers import {loader}, AutoTokenizer\n\n"
            f'model = {loader}.from_pretrained("path/to/this/folder")\n'
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```'
        )
    parts.append(_TOKENIZER)
    return "\n\n".join(parts) + "\n"


def _description(family: object, heads: tuple[str, ...] | None, *, opens: bool) -> str:
    kind = f" of the {family} family" if opens else " of a shape that only nlpstack opens" if family else ""
    if heads is None:
        return f"A causal language model{kind}, written by nlpstack: it scores the next token of a text."
    does = ["turns a text, read in both directions, into a vector a token"]
    does += [what for head, what in _DOES.items() if head in heads]
    return f"An encoder (BERT){kind}, written by nlpstack: it {', '.join(does)}."


def _task(heads: tuple[str, ...]) -> tuple[str, str]:
    """What a BERT with these heads is for, and the class of transformers that loses none of them that it could keep."""
    if {"mlm", "nsp"} <= set(heads):
        return "fill-mask", "AutoModelForPreTraining"
    return next((task for head, task in _TASKS.items() if head in heads), ("feature-extraction", "AutoModel"))


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
