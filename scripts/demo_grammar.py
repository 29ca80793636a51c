"""The synchronous grammar of the demo corpus: Korean, English and their word links at once.

A rule names its parts and says in which order Korean and English put them. Korean puts every
modifier before what it modifies and the verb last; English does neither. A sure link joins words
that mean the same; a possible link joins a word that the other language has no word for (an
article, a preposition, an auxiliary) to the word whose ending or presence stands for it.

Each Korean sentence means one thing: topics (은/는) do not occur inside an embedded clause, whose
subject takes 이/가, and nothing stands where it could belong to two verbs or to two nouns.
"""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from demo_phrases import EMPTY, Phrase, add_particle, rule, verb_group, word
from demo_words import (
    MANNERS,
    NAMES,
    NUMBERS,
    OWNERS,
    PRONOUNS,
    SAYINGS,
    TIMES,
    VERBS,
    Noun,
    Verb,
    add_s,
    adjectives,
    nouns,
)

RELATIVE_TENSES = {
    "past": ["past"],
    "present": ["past", "present", "present"],
    "future": ["past", "past", "future"],
    "would": ["past"],
}

# What joins two clauses: the ending of the first, a conjunction, and their English.
CONJUNCTIONS = [
    ("고", "", "and"),
    ("지만", "", "but"),
    ("다", "그리고", "and"),
    ("다", "하지만", "but"),
    ("다", "그래서", "so"),
]

T = TypeVar("T")


class Grammar:
    """Draws sentences at random; none uses a noun, name, verb or time twice if it can help it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.used: list[object] = []

    def chance(self, probability: float) -> bool:
        """True that often."""
        return self.rng.random() < probability

    def perhaps(self, probability: float, make: Callable[..., Phrase], *details: object) -> Phrase:
        """What `make` makes that often, else nothing."""
        return make(*details) if self.chance(probability) else EMPTY

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, if possible one that the sentence does not contain yet."""
        choice = self.rng.choice([x for x in options if x not in self.used] or options)
        self.used.append(choice)
        return choice

    def noun(self, kinds: str) -> Noun:
        """A noun of one of the kinds."""
        return self.pick(nouns(kinds))

    def person(self, case: str) -> Phrase:
        """A name or a pronoun: 민수 = Minsu, 나 = I or me."""
        korean, *forms = self.pick(PRONOUNS if self.chance(0.4) else NAMES)
        english = forms[0 if case == "subject" else -1]
        return word(korean, english, third=forms[0] not in ("I", "we", "they"))

    def common(self, noun: Noun, described: bool = True, owned: bool = False) -> Phrase:
        """A noun with its article, number or owner, and perhaps an adjective.

        빨간 사과 = the red apple, 개들 = the dogs, 민수의 책 = Minsu's book, 밥 = rice.
        """
        adjective = EMPTY
        if adjectives(noun) and described and self.chance(0.25):
            adjective = word(*self.rng.choice(adjectives(noun)))
        style = self.rng.random()
        if noun.counter and style < 0.15:
            return self.counted(noun, adjective)
        order, links, owner = "the ADJ HEAD", "ADJ~the HEAD~the", EMPTY
        head = word(noun.korean, noun.english, third=True)
        if noun.is_mass:
            order, links = "ADJ HEAD", ""
        elif noun.kind in ("person", "animal") and style < 0.22:
            head = word(noun.korean + "들", noun.plural)
        elif noun.kind not in ("person", "opening") and owned and style < 0.3:
            order, links, owner = "OWNER ADJ HEAD", "", self.owner()
        return rule("OWNER ADJ HEAD", order, links, OWNER=owner, ADJ=adjective, HEAD=head)

    def counted(self, noun: Noun, adjective: Phrase) -> Phrase:
        """A noun with a number: 사과 세 개 = three apples, 물 한 잔 = one glass of water."""
        korean, english = self.rng.choice(NUMBERS)
        number, one = word(korean, english), english == "one"
        if noun.measure:
            return rule(
                "ADJ NOUN NUMBER HEAD",
                "NUMBER HEAD of ADJ NOUN",
                "HEAD~of NOUN~of",
                ADJ=adjective,
                NOUN=word(noun.korean, noun.english),
                NUMBER=number,
                HEAD=word(noun.counter, noun.measure if one else add_s(noun.measure), third=one),
            )
        return rule(
            "ADJ HEAD NUMBER COUNTER",
            "NUMBER ADJ HEAD",
            "COUNTER~NUMBER COUNTER~HEAD",
            ADJ=adjective,
            HEAD=word(noun.korean, noun.english if one else noun.plural, third=one),
            NUMBER=number,
            COUNTER=Phrase((noun.counter,)),
        )

    def owner(self) -> Phrase:
        """An owner: 민수의 = Minsu's, 내 = my."""
        if self.chance(0.3):
            korean, english = self.pick(OWNERS)
            return word(korean, english)
        korean, english = self.pick(NAMES)
        return word(korean + "의", english + "'s")

    def noun_phrase(self, kinds: str, case: str = "object") -> Phrase:
        """A person, a noun, or two of them: 개와 고양이 = the dog and the cat.

        The first of two has no adjective and no owner: they could be meant of both.
        """
        named = "person" in kinds.split() and self.chance(0.5)
        fresh = [noun for noun in nouns(kinds) if noun not in self.used]
        if len(fresh) < 2 or self.chance(0.9):
            return self.person(case) if named else self.common(self.noun(kinds), owned=True)
        if named:
            first, second = (word(ko, en) for ko, en in (self.pick(NAMES), self.pick(NAMES)))
        else:
            first = self.common(self.noun(kinds), described=False)
            second = self.common(self.noun(kinds))
        first = add_particle(first, "와")
        return rule("FIRST SECOND", "FIRST and SECOND", "FIRST~and", FIRST=first, SECOND=second)

    def relative(self, kinds: str, tense: str, initial: bool = False, depth: int = 1) -> Phrase:
        """A noun that is the subject or the object of a relative clause."""
        noun = self.noun(kinds)
        tense = self.rng.choice(RELATIVE_TENSES[tense])
        doing = [verb for verb in self.verbs(tense) if noun in nouns(verb.subjects)]
        undergoing = [verb for verb in self.verbs(tense) if noun in nouns(verb.objects)]
        if doing and (not undergoing or self.chance(0.6)):
            return self.subject_relative(noun, self.pick(doing), tense, initial, depth)
        if undergoing:
            return self.object_relative(noun, self.pick(undergoing), tense)
        return self.common(noun)

    def subject_relative(
        self, noun: Noun, verb: Verb, tense: str, initial: bool, depth: int
    ) -> Phrase:
        """The noun acts: 밥을 먹은 남자 = the man who ate rice.

        A place before it could belong to a later verb, so it has one only `initial` in a clause,
        and if its object has no relative clause of its own.
        """
        who = "who" if noun.kind == "person" else "that"
        head = self.common(noun)
        nested = verb.is_transitive and depth > 0 and self.chance(0.25)
        return rule(
            "PLACE GOAL OBJECT VERB HEAD",
            f"HEAD {who} VERB OBJECT GOAL PLACE",
            f"VERB~{who} HEAD~{who}",
            HEAD=head,
            VERB=verb_group(verb, tense, "는", head.third, self.chance(0.1)),
            OBJECT=self.object(verb, tense if nested else "", depth - 1),
            GOAL=self.goal(verb),
            PLACE=self.perhaps(0.3 * (initial and verb.has_place and not nested), self.place),
        )

    def object_relative(self, noun: Noun, verb: Verb, tense: str) -> Phrase:
        """The noun undergoes: 민수가 어제 산 사과 = the apple that Minsu bought yesterday."""
        who = "who" if noun.kind == "person" else "that"
        head = self.common(noun)
        subject = self.noun_phrase(self.rng.choice(verb.subjects.split()), "subject")
        return rule(
            "SUBJECT TIME PLACE GOAL VERB HEAD",
            f"HEAD {who} SUBJECT VERB GOAL PLACE TIME",
            f"VERB~{who} HEAD~{who}",
            HEAD=head,
            SUBJECT=add_particle(subject, "가"),
            VERB=verb_group(verb, tense, "는", subject.third, self.chance(0.1)),
            GOAL=self.goal(verb),
            PLACE=self.perhaps(0.2 * verb.has_place, self.place),
            TIME=self.perhaps(0.2 * verb.has_place, self.time, tense),
        )

    def object(self, verb: Verb, relative_tense: str = "", depth: int = 1) -> Phrase:
        """The object of a verb, if it takes one: 밥을 = rice."""
        if verb.objects == "-":
            return EMPTY
        if relative_tense:
            return add_particle(self.relative(verb.objects, relative_tense, depth=depth), "를")
        return add_particle(self.noun_phrase(verb.objects), "를")

    def goal(self, verb: Verb) -> Phrase:
        """To whom or where, if the verb says so: 여자에게 = to the woman."""
        if verb.goal == "-":
            return EMPTY
        particle, kinds = verb.goal.split(maxsplit=1)
        if kinds != "person":
            return self.place(particle, "to")
        return rule("WHO", "to WHO", "WHO~to", WHO=add_particle(self.noun_phrase(kinds), particle))

    def place(self, particle: str = "에서", preposition: str = "") -> Phrase:
        """A place: 학교에서 = at the school, 학교로 = to the school."""
        noun = self.noun("at in")
        preposition = preposition or noun.kind
        where = add_particle(word(noun.korean, noun.english), particle)
        links = f"WHERE~{preposition} WHERE~the"
        return rule("WHERE", f"{preposition} the WHERE", links, WHERE=where)

    def time(self, tense: str) -> Phrase:
        """A time: 어제 = yesterday, 아침에 = in the morning."""
        tense = {"would": "future", "bare": "future"}.get(tense, tense)
        korean, english, links, _ = self.pick([row for row in TIMES if tense in row[-1].split()])
        return word(korean, english, links)

    def company(self) -> Phrase:
        """Company: 여자와 함께 = with the woman."""
        who = add_particle(self.noun_phrase("person"), "와")
        return rule("WHO 함께", "with WHO", "WHO~with 함께-with", WHO=who)

    def manner(self, verb: Verb, kind: str) -> Phrase:
        """How, or with what if a person does it: 빨리 = quickly, 칼로 = with the knife."""
        english = self.rng.choice(verb.manners.split())
        for korean, meaning in MANNERS:
            if meaning == english:
                return word(korean, english)
        if kind != "person" or not nouns(english):
            return EMPTY
        tool = add_particle(word(self.noun(english).korean, english), "로")
        return rule("TOOL", "with the TOOL", "TOOL~with TOOL~the", TOOL=tool)

    def verbs(self, tense: str, events: bool = False) -> list[Verb]:
        """The verbs that the sentence does not contain yet and that have this tense."""
        fresh = [verb for verb in VERBS if verb not in self.used]
        if events or tense not in ("past", "present"):
            return [verb for verb in fresh if not verb.is_stative]
        return fresh

    def clause(self, tense: str, ending: str = "다", embedded: bool = False) -> Phrase:
        """A subject and what it does: 남자는 어제 밥을 먹었다 = the man ate rice yesterday.

        An object with a relative clause needs a topic before it, with nothing in between. What
        something else comes after (먹은 후에) is an event: not a state, and not negated.
        """
        is_event = ending == "는"
        verb = self.pick(self.verbs(tense, is_event))
        kind = self.rng.choice(verb.subjects.split())
        heavy_object = verb.is_transitive and not embedded and self.chance(0.2)
        heavy_subject = self.chance(0.15)
        if heavy_subject:
            subject = self.relative(kind, tense, initial=not embedded)
        else:
            subject = self.noun_phrase(kind, "subject")
        is_topic = heavy_object or (not embedded and self.chance(0.7))
        front = not (embedded or heavy_subject or verb.is_stative) and self.chance(0.1)
        inner = not (heavy_object or verb.is_stative)
        alone = kind != "person" or "person" in (verb.objects + verb.goal).split()
        return rule(
            "FRONT SUBJECT TIME PLACE COMPANY GOAL OBJECT MANNER VERB",
            "FRONT SUBJECT VERB OBJECT GOAL MANNER COMPANY PLACE TIME",
            FRONT=self.perhaps(front, self.time, tense),
            SUBJECT=add_particle(subject, "는" if is_topic else "가"),
            TIME=self.perhaps(0.2 * (inner and not front), self.time, tense),
            PLACE=self.perhaps(0.2 * (inner and verb.has_place), self.place),
            COMPANY=self.perhaps(0.07 * (inner and not alone), self.company),
            GOAL=self.goal(verb),
            OBJECT=self.object(verb, tense if heavy_object else ""),
            MANNER=self.perhaps(0.2 * inner, self.manner, verb, kind),
            VERB=verb_group(verb, tense, ending, subject.third, not is_event and self.chance(0.1)),
        )

    def chain(self, tense: str, count: int) -> Phrase:
        """Several clauses in a row: 개는 잤고 새는 노래했다 = the dog slept and the bird sang."""
        if count == 1:
            return self.clause(tense)
        ending, conjunction, english = self.rng.choice(CONJUNCTIONS)
        return rule(
            f"FIRST {conjunction} REST",
            f"FIRST {english} REST",
            f"{conjunction}-{english}" if conjunction else f"FIRST~{english}",
            FIRST=self.clause(tense, ending),
            REST=self.chain(tense, count - 1),
        )

    def actions(self, tense: str) -> Phrase:
        """Two things that one person does: 민수는 밥을 먹고 잤다 = Minsu ate rice and slept.

        The first verb shows no tense in Korean; the future is said once in English.
        """
        subject = self.noun_phrase("person", "subject")
        bare = "bare" if tense == "future" else tense
        return rule(
            "FRONT SUBJECT FIRST SECOND",
            "FRONT SUBJECT WILL FIRST and SECOND",
            "FIRST~and FIRST~WILL SECOND~WILL",
            FRONT=self.perhaps(0.2, self.time, tense),
            SUBJECT=add_particle(subject, "는"),
            WILL=Phrase(target=("will",)) if tense == "future" else EMPTY,
            FIRST=self.predicate(bare, "-고", subject.third),
            SECOND=self.predicate(bare, "다", subject.third),
        )

    def predicate(self, tense: str, ending: str, third: bool) -> Phrase:
        """What a person does: 여자에게 책을 주었다 = gave the book to the woman."""
        verbs = self.verbs(tense, events=True)
        verb = self.pick([verb for verb in verbs if "person" in verb.subjects.split()])
        return rule(
            "GOAL OBJECT VERB",
            "VERB OBJECT GOAL",
            GOAL=self.goal(verb),
            OBJECT=self.object(verb),
            VERB=verb_group(verb, tense, ending, third),
        )

    def saying(self) -> Phrase:
        """What someone says: 민수는 개가 잤다고 말했다 = Minsu said that the dog slept."""
        speaker = self.noun_phrase("person", "subject")
        tense = self.rng.choice(["past", "past", "present"])
        said = self.rng.choice(["past", "would" if tense == "past" else "future"])
        return rule(
            "SPEAKER WHAT SAY",
            "SPEAKER SAY that WHAT",
            "WHAT~that SAY~that",
            SPEAKER=add_particle(speaker, "는"),
            WHAT=self.clause(said, "다고", embedded=True),
            SAY=verb_group(self.pick(SAYINGS), tense, "다", speaker.third),
        )

    def because(self, tense: str) -> Phrase:
        """A reason: 개가 잤기 때문에 민수는 웃었다 = Minsu laughed because the dog slept."""
        return rule(
            "REASON 때문에 MAIN",
            "MAIN because REASON",
            "때문에-because REASON~because",
            REASON=self.clause(tense, "기", embedded=True),
            MAIN=self.clause(tense),
        )

    def after(self) -> Phrase:
        """What came first: 민수가 일한 후에 개는 잤다 = the dog slept after Minsu worked."""
        return rule(
            "FIRST 후에 MAIN",
            "MAIN after FIRST",
            "후에-after FIRST~after",
            FIRST=self.clause("past", "는", embedded=True),
            MAIN=self.clause("past"),
        )

    def sentence(self, long: bool = False) -> Phrase:
        """Any sentence, or a long chain of clauses."""
        self.used.clear()
        tense = self.rng.choice(["past", "past", "past", "present", "future"])
        if long:
            return self.chain(tense, self.rng.randint(3, 6))
        kinds = ["clause", "chain", "actions", "saying", "because", "after"]
        match self.rng.choices(kinds, weights=[58, 13, 11, 9, 5, 4])[0]:
            case "chain":
                return self.chain(tense, self.rng.randint(2, 3))
            case "actions":
                return self.actions(tense)
            case "saying":
                return self.saying()
            case "because":
                return self.because(tense)
            case "after":
                return self.after()
        return self.clause(tense)


def classic() -> Phrase:
    """나는 밥을 먹었다 = I ate rice."""
    return rule(
        "SUBJECT OBJECT VERB",
        "SUBJECT VERB OBJECT",
        SUBJECT=add_particle(word("나", "I"), "는"),
        OBJECT=add_particle(word("밥", "rice"), "를"),
        VERB=verb_group(VERBS[0], "past", "다", third=False),
    )
