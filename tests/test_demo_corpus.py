import importlib
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "data" / "demo"
SIZES = {"train": 12000, "valid": 500, "test": 1000, "long": 200}
FUNCTION_WORDS = {
    "the",
    "of",
    "to",
    "will",
    "would",
    "do",
    "does",
    "did",
    "who",
    "that",
    "at",
    "in",
}

# One for each kind of rule, checked by hand.
EXAMPLES = """
나는 밥을 먹었다
I ate rice
0-0 1-2 2-1

유나는 학교에서 선생님에게 감자를 주었다
Yuna gave the potato to the teacher at the school
0-0 1p7 1p8 1-9 2p4 2p5 2-6 3p2 3-3 4-1

배고픈 할머니는 은지의 잡지를 읽었다
the hungry grandmother read Eunji's magazine
0p0 0-1 1p0 1-2 2-4 3-5 4-3

그녀가 재미있는 편지를 연필로 쓴다
she writes the interesting letter with the pencil
0-0 1p2 1-3 2p2 2-4 3p5 3p6 3-7 4-1

그들은 친구와 함께 노래할 것이다
they will sing with the friend
0-0 1p3 1p4 1-5 2-3 3p1 3-2 4p1 4p2

남자가 도운 의사는 노래 다섯 곡을 불렀다
the doctor who the man helped sang five songs
0p3 0-4 1p2 1-5 2p0 2-1 2p2 3-8 4-7 5p7 5p8 6-6

치즈를 먹은 토끼를 본 고양이가 작은 쥐 두 마리를 좋아했다
the cat that saw the rabbit that ate cheese liked two small mice
0-8 1p6 1-7 2p4 2-5 2p6 3p2 3-3 4p0 4-1 4p2 5-11 6-12 7-10 8p10 8p12 9-9

서연은 학생에게 소설을 보내고 시장으로 돌아갔다
Seoyeon sent the novel to the student and returned to the market
0-0 1p4 1p5 1-6 2p2 2-3 3-1 3p7 4p9 4p10 4-11 5-8

농부가 차를 마신 후에 수진과 은지가 앉았다
Sujin and Eunji sat after the farmer drank tea
0p5 0-6 1-8 2p4 2-7 3-4 4-0 4p1 5-2 6-3

우리가 배고픈 소녀들을 만나기 때문에 할머니들은 작은 개를 그린다
the grandmothers draw the small dog because we meet the hungry girls
0-7 1p9 1-10 2p9 2-11 3p6 3-8 4-6 5p0 5-1 6p3 6-4 7p3 7-5 8-2

민수는 영희가 앉을 것이라고 생각했다
Minsu thought that Younghee would sit
0-0 1-3 2p4 2-5 3p2 3p4 3p5 4-1 4p2
"""

Lines = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("make_demo_corpus")


@pytest.fixture(scope="module")
def phrases(script: ModuleType) -> ModuleType:
    return importlib.import_module("demo_phrases")


@pytest.fixture(scope="module")
def words(script: ModuleType) -> ModuleType:
    return importlib.import_module("demo_words")


@pytest.fixture(scope="module")
def corpus() -> Lines:
    """corpus[name][suffix] are the committed lines."""

    def lines(name: str) -> list[str]:
        text = (COMMITTED / name).read_bytes().decode("utf-8")
        assert text.endswith("\n")
        return text[:-1].split("\n")

    return {
        name: {suffix: lines(f"{name}.{suffix}") for suffix in ("ko", "en", "align")}
        for name in SIZES
    }


def all_lines(corpus: Lines, suffix: str) -> list[str]:
    return [line for name in SIZES for line in corpus[name][suffix]]


def test_the_committed_files_are_what_the_script_writes(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["make_demo_corpus.py", "--out", str(tmp_path), "--seed", "1"])
    script.main()
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in COMMITTED.iterdir()}
    assert "train  12000 sentences of 2 to 30 English words" in capsys.readouterr().out


def test_each_set_has_its_size_on_both_sides_and_in_its_links(corpus: Lines) -> None:
    for name, size in SIZES.items():
        assert {suffix: len(lines) for suffix, lines in corpus[name].items()} == {
            "ko": size,
            "en": size,
            "align": size,
        }


@pytest.mark.parametrize("suffix", ["ko", "en"])
def test_no_sentence_occurs_twice_on_either_side_in_any_set(corpus: Lines, suffix: str) -> None:
    sentences = all_lines(corpus, suffix)
    assert len(set(sentences)) == len(sentences) == sum(SIZES.values())


def test_the_classic_example_is_held_out_but_its_words_are_common(corpus: Lines) -> None:
    test = corpus["test"]
    classic = ("나는 밥을 먹었다", "I ate rice", "0-0 1-2 2-1")
    assert classic in zip(test["ko"], test["en"], test["align"], strict=True)
    counts = [sum(w in line.split() for line in corpus["train"]["ko"]) for w in classic[0].split()]
    assert min(counts) >= 50


def test_examples_checked_by_hand_are_in_the_corpus(corpus: Lines) -> None:
    triples = set(zip(*(all_lines(corpus, x) for x in ("ko", "en", "align")), strict=True))
    for example in EXAMPLES.strip().split("\n\n"):
        assert tuple(example.split("\n")) in triples


def test_every_link_is_in_range_and_every_word_is_linked(corpus: Lines) -> None:
    for ko, en, align in zip(*(all_lines(corpus, x) for x in ("ko", "en", "align")), strict=True):
        links = [re.fullmatch(r"(\d+)[-p](\d+)", link) for link in align.split(" ")]
        pairs = [(int(link[1]), int(link[2])) for link in links if link]
        assert len(pairs) == len(links) == len(set(pairs))
        assert pairs == sorted(pairs)
        assert {i for i, _ in pairs} == set(range(len(ko.split(" "))))
        assert {j for _, j in pairs} == set(range(len(en.split(" "))))


def test_words_without_a_counterpart_have_only_possible_links(corpus: Lines) -> None:
    for ko, en, align in zip(*(all_lines(corpus, x) for x in ("ko", "en", "align")), strict=True):
        source, target = ko.split(), en.split()
        for i, j in re.findall(r"(\d+)-(\d+)", align):
            assert target[int(j)] not in FUNCTION_WORDS
            assert not source[int(i)].startswith("것이")


def test_lengths_are_as_promised(corpus: Lines) -> None:
    lengths = {name: [len(line.split()) for line in corpus[name]["en"]] for name in SIZES}
    for name in ("train", "valid", "test"):
        assert min(lengths[name]) >= 2
        assert max(lengths[name]) <= 30
        assert sum(4 <= x <= 15 for x in lengths[name]) > 0.7 * len(lengths[name])
    assert (min(lengths["long"]), max(lengths["long"])) == (31, 55)


def test_every_held_out_word_occurs_in_train(corpus: Lines) -> None:
    for suffix in ("ko", "en"):
        known = {word for line in corpus["train"][suffix] for word in line.split()}
        used = {word for line in all_lines(corpus, suffix) for word in line.split()}
        assert used == known


def test_korean_is_hangul_and_english_is_ascii_letters(corpus: Lines) -> None:
    assert all(re.fullmatch("[가-힣]+( [가-힣]+)*", line) for line in all_lines(corpus, "ko"))
    assert all(re.fullmatch("[A-Za-z']+( [A-Za-z']+)*", x) for x in all_lines(corpus, "en"))


def test_a_korean_sentence_has_one_translation_and_most_sentences_are_still_unseen(
    script: ModuleType, corpus: Lines
) -> None:
    grammar = script.Grammar(random.Random(2))
    pairs = dict(zip(*(all_lines(corpus, x) for x in ("ko", "en")), strict=True))
    for _ in range(6000):
        pair = grammar.sentence()
        english = " ".join(pair.target)
        assert pairs.setdefault(" ".join(pair.source), english) == english
    # Nine in ten are not in the corpus, so it is at most about a tenth of what there is.
    assert len(pairs) > sum(SIZES.values()) + 5400


@pytest.mark.parametrize(
    ("word", "particle", "expected"),
    [
        ("남자", "는", "남자는"),
        ("학생", "는", "학생은"),
        ("개", "가", "개가"),
        ("지현", "가", "지현이"),
        ("나", "가", "내가"),
        ("사과", "를", "사과를"),
        ("밥", "를", "밥을"),
        ("고양이", "와", "고양이와"),
        ("곰", "와", "곰과"),
        ("학교", "로", "학교로"),
        ("공원", "로", "공원으로"),
        ("칼", "로", "칼로"),
        ("칼", "를", "칼을"),
        ("여자", "에게", "여자에게"),
    ],
)
def test_particles_follow_the_final_consonant(
    phrases: ModuleType, word: str, particle: str, expected: str
) -> None:
    assert phrases.with_particle(word, particle) == expected


def test_no_noun_in_the_corpus_has_the_wrong_particle(words: ModuleType, corpus: Lines) -> None:
    used = {word for line in all_lines(corpus, "ko") for word in line.split()}
    seen = 0
    for noun in [noun.korean for noun in words.NOUNS] + [name for name, _ in words.NAMES]:
        final = (ord(noun[-1]) - 0xAC00) % 28
        after_vowel, after_consonant = {"는", "가", "를", "와"}, {"은", "이", "을", "과"}
        right, wrong = (after_consonant, after_vowel) if final else (after_vowel, after_consonant)
        assert used.isdisjoint(noun + particle for particle in wrong)
        assert (noun + ("로" if final not in (0, 8) else "으로")) not in used
        seen += len(used & {noun + particle for particle in right})
    assert seen > 200


@pytest.mark.parametrize(
    ("verb", "forms"),
    [  # past, present and future: at the end of a sentence, and before a noun
        ("먹다", "먹었다 먹는다 먹을것이다 먹은 먹는 먹을"),
        ("사다", "샀다 산다 살것이다 산 사는 살"),
        ("열다", "열었다 연다 열것이다 연 여는 열"),
        ("듣다", "들었다 듣는다 들을것이다 들은 듣는 들을"),
        ("걷다", "걸었다 걷는다 걸을것이다 걸은 걷는 걸을"),
        ("돕다", "도왔다 돕는다 도울것이다 도운 돕는 도울"),
        ("자르다", "잘랐다 자른다 자를것이다 자른 자르는 자를"),
    ],
)
def test_verbs_are_conjugated(
    words: ModuleType, phrases: ModuleType, verb: str, forms: str
) -> None:
    entry = next(entry for entry in words.VERBS if entry.korean == verb)
    tenses = ("past", "present", "future")
    made = [phrases.conjugate(entry, tense, ending) for ending in ("다", "는") for tense in tenses]
    assert ["".join(form) for form in made] == forms.split()


def test_endings_join_clauses(words: ModuleType, phrases: ModuleType) -> None:
    eat = words.VERBS[0]
    assert phrases.conjugate(eat, "past", "지만") == ["먹었지만"]
    assert phrases.conjugate(eat, "past", "-고") == ["먹고"]
    assert phrases.conjugate(eat, "present", "다고") == ["먹는다고"]
    assert phrases.conjugate(eat, "present", "기") == ["먹기"]
    assert phrases.conjugate(eat, "future", "다고") == ["먹을", "것이라고"]


def test_a_negated_verb_links_the_verbs_and_the_negations(
    words: ModuleType, phrases: ModuleType
) -> None:
    group = phrases.verb_group(words.VERBS[0], "past", "다", third=True, negated=True)
    assert (group.source, group.target) == (("먹지", "않았다"), ("did", "not", "eat"))
    assert group.pharaoh() == "0p0 0p1 0-2 1p0 1-1 1p2"


def test_a_rule_orders_both_sides_and_moves_the_links(phrases: ModuleType) -> None:
    phrase = phrases.rule(
        "NONE OBJECT VERB 때문에",
        "because VERB the OBJECT NONE",
        "때문에-because OBJECT~the NONE~the",
        OBJECT=phrases.word("빨간 공을", "red ball", "0-0 1-1"),
        VERB=phrases.word("던졌다", "threw"),
        NONE=phrases.EMPTY,
    )
    assert phrase.source == ("빨간", "공을", "던졌다", "때문에")
    assert phrase.target == ("because", "threw", "the", "red", "ball")
    assert phrase.pharaoh() == "0-3 1p2 1-4 2-1 3-0"


def test_a_rule_agrees_with_its_head(phrases: ModuleType) -> None:
    dog, dogs = phrases.word("개", "dog", third=True), phrases.word("개들", "dogs")
    assert phrases.rule("HEAD OTHER", "HEAD OTHER", HEAD=dog, OTHER=dogs).third
    assert not phrases.rule("HEAD OTHER", "HEAD OTHER", HEAD=dogs, OTHER=dog).third
    assert not phrases.rule("OTHER", "OTHER", OTHER=dog).third
