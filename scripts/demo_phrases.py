"""Phrases: Korean, English and their word links at once, and how they are built.

A link starts at a Korean word and ends at an English one; both are counted from 0.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from demo_words import Verb, add_s

PARTICLES = {
    "는": "은",
    "가": "이",
    "를": "을",
    "와": "과",
    "로": "으로",
}  # after vowels: consonants
NIEUN, RIEUL = 4, 8  # the final consonants ㄴ and ㄹ, as Unicode counts them
SOFT_STEMS = {"듣다": "들으", "걷다": "걸으", "돕다": "도우"}  # irregular before ㄴ and ㄹ
NOT = Verb("않다", "않았다", "not", "not")


def final_consonant(word: str) -> int:
    """The number of the last syllable's final consonant, 0 if it ends in a vowel (밥 17, 나 0)."""
    return (ord(word[-1]) - ord("가")) % 28


def with_final(word: str, consonant: int) -> str:
    """The word with this final consonant in place of its own, if any (가 + ㄴ: 간)."""
    return word[:-1] + chr(ord(word[-1]) - final_consonant(word) + consonant)


def with_particle(word: str, after_vowel: str) -> str:
    """The word with a particle, given as it is after a vowel: 개를, 밥을; 칼로, 펜으로; 내가."""
    final = final_consonant(word)
    is_vowel = final == 0 or (final == RIEUL and after_vowel == "로")
    marked = word + (after_vowel if is_vowel else PARTICLES.get(after_vowel, after_vowel))
    return "내가" if marked == "나가" else marked


def conjugate(verb: Verb, tense: str, ending: str) -> list[str]:
    """The Korean verb, e.g. 먹었다, 먹는다, 먹을 것이다.

    The endings: 다 ends a sentence, 다고 (that), 고 (and), 지만 (but), 기 (a noun, before 때문에),
    는 (before a noun: 먹은, 먹는, 먹을), and -고 (and; of any tense).
    """
    stem = verb.korean[:-1]
    is_open = final_consonant(stem) in (0, RIEUL)
    soft_stem = SOFT_STEMS.get(verb.korean, stem if is_open else stem + "으")
    if ending == "-고":
        return [stem + "고"]
    if tense == "past":
        return [with_final(soft_stem, NIEUN) if ending == "는" else verb.korean_past[:-1] + ending]
    if tense == "present" and ending == "는":
        return [(with_final(stem, 0) if is_open else stem) + "는"]
    if tense == "present" and ending in ("다", "다고"):
        return [(with_final(stem, NIEUN) if is_open else stem + "는") + ending]
    if tense == "present":
        return [stem + ending]
    future = with_final(soft_stem, RIEUL)
    return [future] if ending == "는" else [future, "것이" + ending.replace("다고", "라고")]


@dataclass(frozen=True)
class Phrase:
    """A piece of Korean, its English, and links (Korean position, - or ~, English position).

    A link - is sure, a link ~ is possible. `third` is true of a subject whose verb takes -s.
    """

    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    links: frozenset[tuple[int, str, int]] = frozenset()
    third: bool = False

    def pharaoh(self) -> str:
        """The links in Pharaoh format, sorted: `i-j` if sure, `ipj` if possible."""
        links = sorted(self.links, key=lambda link: (link[0], link[2]))
        return " ".join(f"{i}{mark.replace('~', 'p')}{j}" for i, mark, j in links)


EMPTY = Phrase()


def add_particle(phrase: Phrase, after_vowel: str) -> Phrase:
    """The phrase with a particle on its last Korean word: 사과 세 개 becomes 사과 세 개를."""
    *before, last = phrase.source
    return replace(phrase, source=(*before, with_particle(last, after_vowel)))


def verb_group(verb: Verb, tense: str, ending: str, third: bool, negated: bool = False) -> Phrase:
    """A verb with its auxiliaries: 먹지 않았다 = did not eat, 먹을 것이다 = will eat.

    The two verbs are surely linked, and 않다 with not; all other pairs are possible. The tense
    `would` is a future seen from the past; `bare` is a future whose will stands elsewhere.
    """
    source, helpers = conjugate(verb, tense, ending), []
    main = verb.english.split("_")  # wait_for is two words
    if tense in ("future", "would"):
        helpers = ["will" if tense == "future" else "would"]
    elif negated:
        helpers = ["did" if tense == "past" else "does" if third else "do"]
    elif tense == "past":
        main = verb.english_past.split("_")
    elif tense == "present" and third:
        main[0] = add_s(main[0])
    if negated:
        source = [verb.korean[:-1] + "지", *conjugate(NOT, tense, ending)]
        helpers.append("not")
    target = helpers + main
    sure = {(0, len(helpers)), (1, len(helpers) - 1)} if negated else {(0, len(helpers))}
    pairs = product(range(len(source)), range(len(target)))
    links = frozenset((i, "-" if (i, j) in sure else "~", j) for i, j in pairs)
    return Phrase(tuple(source), tuple(target), links)


def word(korean: str, english: str, links: str = "0-0", third: bool = False) -> Phrase:
    """A lexical entry: 밤에 = at night, 0~0 0-1."""
    triples = frozenset((int(link[0]), link[1], int(link[2])) for link in links.split())
    return Phrase(tuple(korean.split()), tuple(english.split()), triples, third)


def rule(korean: str, english: str, links: str = "", /, **parts: Phrase) -> Phrase:
    """Put parts in the Korean and in the English order; their links come along.

    Names of parts are in capitals, all else is words. More links may be drawn, - for sure or ~ for
    possible; they start at the last word of a Korean part, which bears its ending. A verb agrees
    with the part called HEAD. For example, rule("HEAD", "the HEAD", "HEAD~the",
    HEAD=word("개", "dog")) is 개 = the dog, 0~0 0-1.
    """
    sources, source_at = concatenate(korean, {name: part.source for name, part in parts.items()})
    targets, target_at = concatenate(english, {name: part.target for name, part in parts.items()})
    triples = {
        (source_at[name].start + i, mark, target_at[name].start + j)
        for name, part in parts.items()
        for i, mark, j in part.links
    }
    for left, mark, right in (re.split("([-~])", link) for link in links.split()):
        triples |= {(i, mark, j) for i in source_at[left][-1:] for j in target_at[right]}
    return Phrase(sources, targets, frozenset(triples), parts.get("HEAD", EMPTY).third)


def concatenate(
    order: str, parts: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[str, ...], dict[str, range]]:
    """The words of the parts in order, and where each part or literal word stands."""
    words: list[str] = []
    places = {}
    for name in order.split():
        more = parts.get(name, (name,))
        places[name] = range(len(words), len(words) + len(more))
        words += more
    return tuple(words), places
