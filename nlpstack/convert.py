"""What `nlpstack convert` does: a model in another form in, a plain model folder out."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from warnings import catch_warnings

import torch
from torch import Tensor

from nlpstack.errors import ConfigError, ModelError
from nlpstack.files import read_json_object
from nlpstack.hub import load_model, model_card, save_model, shape_facts
from nlpstack.hub.folder import CONFIG, license_of, read_folder
from nlpstack.hub.gguf import SUFFIX
from nlpstack.hub.weights import INDEX, PICKLES, READABLE, WEIGHTS, Weights

_PICKLED, _PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


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
    home = place.parent if pickled and place.is_file() else place  # where config.json and README.md stand
    model = read_folder(home, Pickled(place)) if pickled else load_model(place)
    facts = {**shape_facts(model), "converted from": place.name, "license": license_of(home)}
    save_model(model, out, card=model_card(facts))
    form = "pickled weights" if pickled else "a GGUF file" if place.suffix == SUFFIX else "a model folder"
    return ConvertResult(out=str(out), parameters=sum(one.numel() for one in model.parameters()), form=form)


class Pickled(Weights):
    """Weights that torch.save wrote: pickles, opened here alone, by torch's reader of tensors, which runs no code."""

    def __init__(self, place: Path) -> None:
        """Read a file, or those of a folder; ModelError if they are not there or hold anything but tensors."""
        files = [place] if place.is_file() else self._of_folder(place)
        self.source, self._tensors = files[0], dict[str, Tensor]()
        for file in files:
            try:
                with catch_warnings(action="ignore"):  # of torch's, about pickles newer than its own
                    found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
            except Exception as error:  # torch's own errors, and any that a damaged pickle raises
                told = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))  # before it: to open it all the same
                fault = told[1] if told else str(error).strip().partition("\n")[0]
                raise ModelError(f"{file}: holds more than tensors, or is damaged; not opened ({fault})") from error
            found = found.get("state_dict", found) if isinstance(found, dict) else found
            once = isinstance(found, dict) and found and not found.keys() & self._tensors.keys()
            if not once or not all(_is_plain(name, one) for name, one in found.items()):
                raise ModelError(f"{file}: holds no table of tensors by name, each once; save the model's state_dict")
            self._tensors |= found
        self.sizes = {name: list(tensor.shape) for name, tensor in self._tensors.items()}
        names = {dtype: name for name, dtype in READABLE.items()}
        self.kinds = {name: names.get(self._tensors[name].dtype, str(self._tensors[name].dtype)) for name in self.sizes}

    def _of_folder(self, folder: Path) -> list[Path]:
        names = [_PICKLED]
        if not (folder / _PICKLED).is_file() and (folder / _PICKLED_INDEX).is_file():
            shards = read_json_object(folder / _PICKLED_INDEX, ModelError).get("weight_map")
            names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) and shards else names
        for name in names:
            if name != Path(name).name or not name.endswith(tuple(PICKLES)) or not (folder / name).is_file():
                raise ModelError(f"{folder}: has no file of weights {name} to convert")
        return [folder / name for name in names]

    def read(self, name: str) -> Tensor:
        """A tensor, mapped if the file can be."""
        return self._tensors[name].detach()


def _is_plain(name: object, value: object) -> bool:
    if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    return value.nbytes <= value.untyped_storage().nbytes()
