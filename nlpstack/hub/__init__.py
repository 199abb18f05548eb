"""Models on disk, in the layout that Hugging Face's libraries share."""

from nlpstack.hub.folder import load_model, model_card, model_folder, save_model, shape_facts, weights_hash

__all__ = ["load_model", "model_card", "model_folder", "save_model", "shape_facts", "weights_hash"]
