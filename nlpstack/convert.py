"""What `nlpstack convert` does: a model in another form in, a plain model folder out."""

from dataclasses import dataclass
from pathlib import Path

from nlpstack.errors import ConfigError
from nlpstack.hub import load_model, model_card, save_model, shape_facts
from nlpstack.hub.card import license_of
from nlpstack.hub.folder import CONFIG, read_folder
from nlpstack.hub.gguf import SUFFIX
from nlpstack.hub.pickled import Pickled
from nlpstack.hub.weights import INDEX, PICKLES, WEIGHTS


@dataclass(frozen=True, kw_only=True)
class ConvertResult:
    """A converted model."""

    out: str
    parameters: int
    form: str  # what it was read from


def convert(source: str | Path, out: str | Path) -> ConvertResult:
    """Write the model of a .gguf file, of a .bin or .pt file beside its config.json, or of a folder as one.

    Pickles are opened here alone, by torch's reader of plain tensors (`weights_only=True`). ModelError for what is no
    model that the core can be, ConfigError where `out` exists; nothing is written then.
    """
    place = Path(source)
    if Path(out).exists():
        raise ConfigError(f"{out}: exists; give another --out")
    whole = any((place / name).is_file() for name in (WEIGHTS, INDEX))
    pickled = (place.suffix in PICKLES and place.is_file()) or ((place / CONFIG).is_file() and not whole)
    model = read_folder(place if place.is_dir() else place.parent, Pickled(place)) if pickled else load_model(place)
    facts = {**shape_facts(model), "converted from": place.name, "license": license_of(place)}
    save_model(model, out, card=model_card(facts))
    form = "pickled weights" if pickled else "a GGUF file" if place.suffix == SUFFIX else "a model folder"
    return ConvertResult(out=str(out), parameters=sum(one.numel() for one in model.parameters()), form=form)
