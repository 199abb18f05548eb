"""Text to token ids and back; our own tokenizers lose no byte of it."""

from pathlib import Path

from nlpstack.errors import ModelError
from nlpstack.files import standing, verify_manifest
from nlpstack.tokenizer.base import Tokenizer, TokenizerConfig
from nlpstack.tokenizer.published import FILES, PublishedTokenizer
from nlpstack.tokenizer.sentencepiece import MODEL_FILE, ForeignModelError, SentencePieceTokenizer
from nlpstack.tokenizer.training import train_tokenizer

__all__ = ["SentencePieceTokenizer", "Tokenizer", "TokenizerConfig", "load_tokenizer", "train_tokenizer"]


def load_tokenizer(path: str | Path, *, verify: bool = True) -> Tokenizer:
    """The tokenizer of a tokenizer folder, a model folder, a run folder, or a .model file.

    In a folder, tokenizer.model counts if nlpstack made it, else tokenizer.json, else vocab.txt, else vocab.json with
    merges.txt. The folder's manifest, if it has one, is checked first, unless the caller just did (`verify=False`).
    """
    path = standing(Path(path))
    if path.suffix == ".model" and not path.is_dir():
        return _from_model_file(path)
    inner = standing(path / "model")
    here = any((path / name).is_file() for name in (MODEL_FILE, *FILES))
    folder = inner if inner.is_dir() and not here else path
    if not folder.is_dir():
        raise ModelError(f"{path}: is no folder; give a tokenizer, model or run folder, or a .model file")
    if verify:
        verify_manifest(folder, ModelError, "copy the folder again or write it again")
    published = any((folder / name).is_file() for name in FILES)
    if (folder / MODEL_FILE).is_file() or not published:
        try:
            return _from_model_file(folder / MODEL_FILE)
        except ForeignModelError:  # Llama's folders hold its own model beside the tokenizer.json that says the same
            if not published:
                raise
    return PublishedTokenizer(folder)


def _from_model_file(file: Path) -> SentencePieceTokenizer:
    try:
        return SentencePieceTokenizer(file.read_bytes())
    except OSError as error:
        fault = f"cannot be read ({error.strerror}); is this a tokenizer's or a model's folder?"
        raise ModelError(f"{file}: {fault}") from error
    except ModelError as error:
        raise type(error)(f"{file}: {error}") from error
