"""The process in which SentencePiece learns a vocabulary: arguments come as JSON on stdin.

It works in the folder of its only argument: files are then named without one, because
SentencePiece writes their names into the model, and the same text must give the same bytes.
"""

import json
import os
import sys

import sentencepiece

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    try:
        sentencepiece.SentencePieceTrainer.train(**json.load(sys.stdin))
    except RuntimeError as error:
        sys.exit(str(error))
