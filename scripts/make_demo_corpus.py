"""Write the demo corpus: Korean and English sentences with word links, from a grammar.

    python scripts/make_demo_corpus.py [--out data/demo] [--seed 1]

Each set is three files with a sentence pair on line N: NAME.ko, NAME.en, and NAME.align with the
word links, 0-based, Korean first: `i-j` is sure, `ipj` possible. The same seed gives the same
bytes. The rules are in demo_grammar.py, the words in demo_words.py.
"""

import argparse
import random
from collections import Counter
from pathlib import Path

from demo_grammar import Grammar, classic
from demo_phrases import Phrase

SIZES = {"train": 12000, "valid": 500, "test": 1000, "long": 200}
SHORT, LONG = range(2, 31), range(31, 56)  # English words


def draw_corpus(seed: int) -> dict[str, list[Phrase]]:
    """Sentence pairs for each set, all different in Korean and in English.

    Every word of valid, test and long occurs in train, so that an error is one of grammar. The
    classic example is the first sentence of test.
    """
    grammar = Grammar(random.Random(seed))
    seen = {classic().source, classic().target}
    known: set[str] = set()
    corpus: dict[str, list[Phrase]] = {"train": [], "valid": [], "test": [classic()], "long": []}
    for name, pairs in corpus.items():
        lengths = LONG if name == "long" else SHORT
        while len(pairs) < SIZES[name]:
            pair = grammar.sentence(long=name == "long")
            words = {*pair.source, *pair.target}
            is_new = seen.isdisjoint((pair.source, pair.target))
            if len(pair.target) in lengths and is_new and (name == "train" or words <= known):
                seen |= {pair.source, pair.target}
                pairs.append(pair)
        if name == "train":
            known = {word for pair in pairs for word in (*pair.source, *pair.target)}
    return corpus


def write_lines(path: Path, lines: list[str]) -> None:
    """Write UTF-8 text, one line each."""
    path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8"))


def write_corpus(corpus: dict[str, list[Phrase]], folder: Path) -> None:
    """Write `NAME.ko`, `NAME.en` and `NAME.align` of each set into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in corpus.items():
        write_lines(folder / f"{name}.ko", [" ".join(pair.source) for pair in pairs])
        write_lines(folder / f"{name}.en", [" ".join(pair.target) for pair in pairs])
        write_lines(folder / f"{name}.align", [pair.pharaoh() for pair in pairs])


def describe(name: str, pairs: list[Phrase]) -> str:
    """One line of numbers about a set."""
    lengths = sorted(len(pair.target) for pair in pairs)
    korean = Counter(word for pair in pairs for word in pair.source)
    english = Counter(word for pair in pairs for word in pair.target)
    tenths = [lengths[len(lengths) * tenth // 10] for tenth in (1, 5, 9)]
    return (
        f"{name:5} {len(pairs):6} sentences of {lengths[0]} to {lengths[-1]} English words "
        f"(10, 50, 90 %: {tenths[0]}, {tenths[1]}, {tenths[2]}); "
        f"distinct words: {len(korean)} Korean, {len(english)} English"
    )


def main() -> None:
    """Draw and write the corpus, and say what is in it."""
    parser = argparse.ArgumentParser(description="Write the Korean-English demo corpus.")
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    corpus = draw_corpus(arguments.seed)
    write_corpus(corpus, arguments.out)
    for name, pairs in corpus.items():
        print(describe(name, pairs))


if __name__ == "__main__":
    main()
