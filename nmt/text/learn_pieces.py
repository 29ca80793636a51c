"""The process in which SentencePiece learns a vocabulary: arguments come as JSON on stdin.

It works in the folder of its only argument: files are then named without one, because
SentencePiece writes their names into the model, and the same text must give the same bytes.
"""

import ctypes
import json
import os
import signal
import sys

import sentencepiece

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """On Linux, end this process as soon as the one that started it has ended in any way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    os.chdir(sys.argv[1])
    try:
        sentencepiece.SentencePieceTrainer.train(**json.load(sys.stdin))
    except RuntimeError as error:
        sys.exit(str(error))
