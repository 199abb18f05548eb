"""Where the fixed pieces of our SentencePiece models stand."""

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]")  # pad, unk, bos, eos, cls, sep, mask
NEWLINE_ID = len(SPECIALS)
FIRST_BYTE_ID = NEWLINE_ID + 1  # the 256 byte pieces
FIXED_PIECES = (*SPECIALS, "\n", *(f"<0x{byte:02X}>" for byte in range(256)))
N_FIXED = len(FIXED_PIECES)  # the id of the first learned piece

SPACE = "\u2581"  # what SentencePiece writes for a space, and hence cannot tell from one
