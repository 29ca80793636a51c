"""The process in which SentencePiece learns a vocabulary: arguments come as JSON on stdin."""

import json
import sys

import sentencepiece

if __name__ == "__main__":
    try:
        sentencepiece.SentencePieceTrainer.train(**json.load(sys.stdin))
    except RuntimeError as error:
        sys.exit(str(error))
