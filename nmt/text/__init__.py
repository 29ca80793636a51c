"""Strings and token ids: reading and writing lines, SentencePiece tokenizers. No torch here."""
