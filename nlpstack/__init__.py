"""Raw text to a trained, adapted and trusted language model; the public names are imported on first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlpstack.hub.folder import load_model, save_model

__version__ = "0.1.0"

__all__ = ["__version__", "load_model", "save_model"]


def __getattr__(name: str) -> object:
    """A public name, imported now, so that `import nlpstack` itself loads no torch (PEP 562)."""
    if name in ("load_model", "save_model"):
        from nlpstack.hub import folder

        return getattr(folder, name)
    raise AttributeError(f"module 'nlpstack' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The names already here and those imported on first use."""
    return sorted({*globals(), *__all__})
