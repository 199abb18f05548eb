"""The table of models that are read and written, made from the tables that read and write them."""

from typing import NamedTuple

from nlpstack.hub.adapters import _TASKS
from nlpstack.hub.families import FAMILIES

TABLE = "<!-- families and heads -->"
HEADS = {  # of ours -> what they are
    "mlm": "hidden tokens",
    "pooler": "pooler",
    "nsp": "next sentence",
    "sequence": "classifier of texts",
    "tokens": "classifier of tokens",
}


class Row(NamedTuple):
    """A model of a family with some heads."""

    family: str
    architecture: str  # the class of transformers that opens what is written
    heads: tuple[str, ...]
    causal: bool
    adapter: str  # PEFT's task type of an adapter on it; empty: none is named

    @property
    def of_theirs(self) -> bool:
        """Whether the class has all of these heads, so that it writes such a folder itself."""
        return self.heads not in (("mlm", "pooler"), ("pooler", "tokens"))


def rows() -> list[Row]:
    """Every family with every set of heads that it can say."""
    found = []
    for name, family in FAMILIES.items():
        for said, architecture in family.architectures.items():
            heads, causal = tuple(said.split()), bool(family.shape["causal"])
            kinds = (kind for kind, (*_, head) in _TASKS.items() if head in heads)
            found.append(Row(name, architecture, heads, causal, next(kinds, "CAUSAL_LM" if causal else "")))
    return found


def table() -> str:
    """The rows in Markdown."""
    titles = "family | heads | class of `transformers` | read | from GGUF | written | adapter (`task_type`)"
    lines = [f"| {titles} |", "|---" * 7 + "|"]
    for row in rows():
        heads = ", ".join(HEADS[head] for head in row.heads) or ("next token" if row.causal else "none")
        written = "yes" if row.of_theirs else "yes; the class leaves the pooler"
        adapter = f"both ways (`{row.adapter}`)" if row.adapter else "both ways"
        gguf = "yes" if FAMILIES[row.family].gguf else ""
        lines.append(f"| `{row.family}` | {heads} | `{row.architecture}` | yes | {gguf} | {written} | {adapter} |")
    return "\n".join(lines)


def fill_models(text: str) -> str:
    """A page with the table in its place."""
    return text.replace(TABLE, table())
