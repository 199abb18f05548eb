"""The operations that training takes, by rule."""

from nlpstack.model import LanguageModel


def flops_per_token(model: LanguageModel, *, predicted: float = 1.0) -> dict[str, int]:
    """FLOPs a token of the `forward` pass and of `training` (Chowdhery et al. 2022, PaLM, appendix B).

    Forward: 2 a weight that multiplies, and attention over the whole context; training: three times that. `predicted`:
    the share of tokens whose word is scored, of a BERT those hidden; what it makes of [CLS] alone is left out.
    """
    config = model.config
    scoring = predicted * config.dim * (config.vocab_size + (0 if config.causal else config.dim))
    blocks = sum(p.numel() for p in model.transformer.blocks.parameters() if p.dim() == 2)
    forward = round(2 * (blocks + scoring)) + 4 * config.n_layers * config.dim * config.max_seq_len
    return {"forward": forward, "training": 3 * forward}
