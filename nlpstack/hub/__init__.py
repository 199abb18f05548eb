"""Models on disk, in the layout that Hugging Face's libraries share."""

from nlpstack.hub.card import model_card, shape_facts
from nlpstack.hub.folder import load_model, model_folder, save_model, weights_hash

__all__ = ["load_model", "model_card", "model_folder", "save_model", "shape_facts", "weights_hash"]
