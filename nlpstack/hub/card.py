"""The README.md of a model folder, made from the words in card.toml and facts the caller gives."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from nlpstack.hub.families import FAMILIES, family_of, model_heads
from nlpstack.hub.gguf import GGUF, SUFFIX
from nlpstack.model import BERT, LanguageModel

CARD = "README.md"
_FRONT = ("name", "license", "language", "family", "outputs")  # facts with a place of their own
_WORDS = tomllib.loads(Path(__file__).with_name("card.toml").read_text("utf-8"))


def shape_facts(model: LanguageModel) -> dict[str, object]:
    """What a card can say of any model: family, a BERT's heads as `outputs`, parameters and shape."""
    config, heads = model.config, model_heads(model)
    return {
        "family": family_of(config, heads),
        **({"outputs": heads} if isinstance(model, BERT) else {}),
        **({"adapts": model.base[0]} if model.base else {}),  # with adapters: the folder of the base
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{"layers": config.n_layers, "dim": config.dim, "heads": config.n_heads},
        **{"context": f"{config.max_seq_len:,} tokens", "vocabulary": config.vocab_size},
    }


def license_of(folder: Path) -> str | None:
    """The licence that the front of a model folder's README.md names, or a GGUF file; None if none is named."""
    if folder.suffix == SUFFIX and folder.is_file():
        return str(GGUF(folder).said.get("general.license") or "") or None
    page = next((one for place in (folder, folder / "model") if (one := place / CARD).is_file()), None)
    front = re.match(r"---\n(.*?)\n---", page.read_text("utf-8", errors="replace"), re.DOTALL) if page else None
    named = re.search(r"^license: *(\S.*)$", front[1], re.MULTILINE) if front else None
    return named[1].strip("\"' ") if named else None


def model_card(facts: Mapping[str, object]) -> str:
    """The text of README.md.

    `name`, `license`, `language` and `family` (as families.family_of) have their places, and so have `outputs`, the
    heads of a BERT, without which the card is a GPT's; every other fact is a line of the list, in the given order, a
    mapping (scores, say) a list below its line. Values are shown as they are.
    """
    family, outputs = facts.get("family"), facts.get("outputs")
    words, heads = (_WORDS["bert"], outputs) if isinstance(outputs, tuple | list) else (_WORDS["gpt"], ())
    task, loader = next(found for needed, found in words["tasks"].items() if set(needed.split()) <= set(heads))
    opens = family in FAMILIES
    front = {
        "library_name": "nlpstack" if not opens else "peft" if facts.get("adapts") else "transformers",
        "pipeline_tag": task,
        "tags": ["nlpstack", task],
        **{key: facts[key] for key in ("license", "language") if facts.get(key)},
    }
    kind = f" of the {family} family" if opens else " of a shape that only nlpstack opens" if family else ""
    does = "".join(f", {what}" for head, what in words["does"].items() if head in heads)
    page: str = _WORDS["page"]
    return page.format(
        # JSON is YAML, and leaves nothing to quote wrongly.
        front="".join(f"{key}: {json.dumps(value, default=str)}\n" for key, value in front.items()),
        name=_plain(facts.get("name") or "A language model"),
        description=words["description"].format(kind=kind, does=does),
        facts="\n".join(_lines(facts)) or "Nothing is recorded.",
        intended=words["intended"],
        transformers=_WORDS["transformers"].format(loader=loader) if opens and not facts.get("adapts") else "",
    )


def _lines(facts: Mapping[str, object]) -> Iterator[str]:
    for key, value in facts.items():
        if key in _FRONT or value is None:
            continue
        if isinstance(value, Mapping):
            yield from (f"- {_plain(key)}:", *(f"  - {_plain(name)}: {_plain(part)}" for name, part in value.items()))
        else:
            yield f"- {_plain(key)}: {_plain(value)}"


def _plain(value: object) -> str:
    """The value on one line, with whatever Markdown or HTML would read as markup escaped."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", str(value)).strip()
    line = re.sub(r"([\\`*\[\]<>|~#&$])", r"\\\1", line)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # inside a word it marks nothing up
