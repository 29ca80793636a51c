"""The words of the demo corpus: what they mean and which go together.

Each table is one string, made to be read and extended by people. The columns that name nouns
(subjects, objects and so on) hold kinds of nouns or single English nouns.
"""

from functools import cache
from typing import NamedTuple


class Noun(NamedTuple):
    """A noun; one without a counter cannot be counted, `measure` is an English counter (cup)."""

    kind: str
    korean: str
    english: str
    plural: str
    counter: str
    measure: str

    @property
    def is_mass(self) -> bool:
        """Whether it takes no article; a drink may still be counted by the cup."""
        return not self.counter or bool(self.measure)


class Verb(NamedTuple):
    """A verb; the fields are the columns of the table."""

    korean: str
    korean_past: str
    english: str
    english_past: str
    subjects: str = "person"
    objects: str = "-"
    goal: str = "-"
    manners: str = "-"

    @property
    def is_transitive(self) -> bool:
        """Whether its object is all that it takes beside a subject."""
        return self.objects != "-" and self.goal == "-"

    @property
    def is_stative(self) -> bool:
        """Whether it happens at no time and no place (like, love)."""
        return self.manners == "stative"

    @property
    def has_place(self) -> bool:
        """Whether it happens somewhere; a verb of motion has a goal instead."""
        return not self.is_stative and not self.goal.endswith("in")


def entries(table: str) -> list[list[str]]:
    """The words of each entry: `민수 Minsu, 지현 Jihyun` is [[민수, Minsu], [지현, Jihyun]]."""
    return [entry.split() for entry in table.replace("\n", ",").split(",") if entry.strip()]


def rows(table: str) -> list[list[str]]:
    """The cells of each row."""
    return [line.split(" | ") for line in table.strip().split("\n")]


def add_s(word: str) -> str:
    """The English plural or third person: boxes, catches, goes, cries, plays."""
    if word.endswith("y") and word[-2] not in "aeou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "sh", "ch", "x", "o")) else "s")


def read_nouns(table: str) -> list[Noun]:
    """The nouns of a table, with regular plurals filled in."""
    nouns = []
    for line in table.strip().split("\n"):
        kind, counter, words = line.split(maxsplit=2)
        counter, _, measure = counter.strip("-").partition("=")
        for korean, english, *plural in entries(words):
            plural.append(add_s(english))
            nouns.append(Noun(kind, korean, english, plural[0], counter, measure))
    return nouns


def read_verbs(table: str) -> list[Verb]:
    """The verbs of a table."""
    return [Verb(*ko.split(), *en.split(), *rest) for ko, en, *rest in rows(table)]


# Kind, counter (- if it is not counted) with the English measure of a drink, irregular plurals.
NOUNS = read_nouns("""
person  명       남자 man men, 여자 woman women, 아이 child children, 학생 student, 의사 doctor
person  명       친구 friend, 농부 farmer, 요리사 chef, 소년 boy, 소녀 girl, 화가 painter
person  명       군인 soldier
person  분       선생님 teacher, 할머니 grandmother, 손님 guest
animal  마리     개 dog, 고양이 cat, 새 bird, 말 horse, 토끼 rabbit, 쥐 mouse mice, 곰 bear
dish    -        밥 rice, 빵 bread, 고기 meat, 치즈 cheese
fruit   개       사과 apple, 배 pear, 감자 potato, 당근 carrot, 달걀 egg
drink   잔=glass 물 water, 우유 milk, 주스 juice
drink   잔=cup   커피 coffee, 차 tea
reading 권       책 book, 소설 novel, 잡지 magazine
mail    통       편지 letter
image   장       그림 picture, 사진 photo photos, 지도 map
thing   개       의자 chair, 상자 box, 가방 bag, 시계 watch, 우산 umbrella, 공 ball
thing   개       장난감 toy, 컵 cup, 모자 hat
vehicle 대       자전거 bicycle, 자동차 car
plant   그루     나무 tree
plant   송이     꽃 flower
opening 개       문 door, 창문 window
sound   곡       노래 song
sound   -        음악 music
movie   편       영화 movie
skill   -        한국어 Korean, 영어 English, 수학 math
tool    자루     연필 pencil, 펜 pen, 칼 knife knives
tool    개       숟가락 spoon, 포크 fork
at      -        학교 school, 시장 market, 병원 hospital, 식당 restaurant, 역 station, 가게 store
in      -        공원 park, 도서관 library, 부엌 kitchen, 정원 garden, 교실 classroom
""")

# Names, then pronouns with their object forms.
NAMES = entries("""
민수 Minsu, 지현 Jihyun, 영희 Younghee, 철수 Cheolsu, 수진 Sujin, 현우 Hyunwoo, 은지 Eunji,
준호 Junho, 서연 Seoyeon, 동훈 Donghoon, 유나 Yuna, 태민 Taemin
""")
PRONOUNS = entries("나 I me, 우리 we us, 그 he him, 그녀 she her, 그들 they them")

OWNERS = entries("내 my, 우리 our")

# Attributive form, meaning, what it can be said of (kinds of nouns or English nouns).
ADJECTIVES = entries("""
작은 small: animal fruit thing plant opening vehicle,
큰 big: animal fruit thing plant opening vehicle, 빨간 red: thing vehicle flower pencil,
파란 blue: thing vehicle opening pen,
노란 yellow: thing vehicle flower bird, 하얀 white: animal thing flower vehicle,
검은 black: dog cat horse bear bag umbrella car pen, 새로운 new: reading thing vehicle movie song,
늙은 old: man woman farmer dog horse, 젊은 young: man woman doctor chef painter teacher soldier,
착한 kind: person, 행복한 happy: person, 배고픈 hungry: person animal,
똑똑한 clever: person dog cat, 게으른 lazy: person animal,
비싼 expensive: reading image thing vehicle fruit meat, 싼 cheap: reading thing vehicle fruit,
무거운 heavy: box bag chair, 뜨거운 hot: water milk coffee tea, 차가운 cold: drink,
맛있는 delicious: dish fruit drink,
신선한 fresh: fruit meat milk bread, 재미있는 interesting: reading movie letter,
아름다운 beautiful: image flower tree sound, 슬픈 sad: song novel movie letter
""")

NUMBERS = entries("""
한 one, 두 two, 세 three, 네 four, 다섯 five, 여섯 six, 일곱 seven, 여덟 eight, 아홉 nine, 열 ten
""")

# Dictionary form and past, English present and past, subjects, objects, goal, manners and tools.
VERBS = read_verbs("""
먹다 먹었다 | eat ate | person animal | dish fruit | - | quickly slowly spoon fork
마시다 마셨다 | drink drank | person | drink | - | quickly slowly
읽다 읽었다 | read read | person | reading letter | - | quickly slowly quietly again
쓰다 썼다 | write wrote | person | letter novel | - | quickly pencil pen
사다 샀다 | buy bought | person | dish fruit reading thing vehicle plant tool | - | -
팔다 팔았다 | sell sold | person | dish fruit reading thing vehicle plant image | - | -
보다 보았다 | see saw | person animal | person animal image movie | - | again
만나다 만났다 | meet met | person | person | - | again
기다리다 기다렸다 | wait_for waited_for | person animal | person | - | quietly
돕다 도왔다 | help helped | person | person | - | again
가르치다 가르쳤다 | teach taught | person | student child boy girl soldier | - | again
부르다 불렀다 | call called | person | person dog cat | - | loudly again
부르다 불렀다 | sing sang | person | song | - | loudly quietly again
듣다 들었다 | listen_to listened_to | person | sound | - | quietly again
열다 열었다 | open opened | person | opening box bag | - | quickly slowly quietly again
닫다 닫았다 | close closed | person | opening box bag | - | quickly slowly quietly again
씻다 씻었다 | wash washed | person | fruit cup spoon fork knife | - | quickly again
만들다 만들었다 | make made | person | bread cheese chair box bag toy | - | quickly slowly
그리다 그렸다 | draw drew | person | picture map animal plant | - | quickly slowly pencil pen
심다 심었다 | plant planted | person | plant potato carrot | - | quickly again
요리하다 요리했다 | cook cooked | person | meat potato carrot egg | - | quickly slowly
배우다 배웠다 | learn learned | person | skill | - | quickly slowly again
잡다 잡았다 | catch caught | person animal | ball mouse bird rabbit | - | quickly again
타다 탔다 | ride rode | person | bicycle horse | - | slowly again
빌리다 빌렸다 | borrow borrowed | person | reading vehicle umbrella chair tool | - | again
던지다 던졌다 | throw threw | person | ball | - | quickly again
고치다 고쳤다 | repair repaired | person | vehicle chair watch umbrella opening | - | quickly again
쫓다 쫓았다 | chase chased | animal | animal | - | quickly quietly
닦다 닦았다 | wipe wiped | person | opening vehicle chair cup | - | quickly slowly again
자르다 잘랐다 | cut cut | person | fruit meat bread cheese | - | quickly slowly knife
잃어버리다 잃어버렸다 | lose lost | person | bag umbrella watch toy pen letter | - | again
좋아하다 좋아했다 | like liked | person animal | person animal dish fruit | - | stative
사랑하다 사랑했다 | love loved | person | person sound | - | stative
주다 주었다 | give gave | person | fruit reading thing plant tool | 에게 person | -
보내다 보냈다 | send sent | person | letter image reading | 에게 person | -
보여주다 보여주었다 | show showed | person | image letter reading toy | 에게 person | -
자다 잤다 | sleep slept | person animal | - | - | quietly
웃다 웃었다 | laugh laughed | person | - | - | loudly quietly
울다 울었다 | cry cried | person | - | - | loudly quietly
달리다 달렸다 | run ran | person animal | - | - | quickly slowly
걷다 걸었다 | walk walked | person animal | - | - | quickly slowly quietly
노래하다 노래했다 | sing sang | person bird | - | - | loudly quietly
춤추다 춤추었다 | dance danced | person | - | - | slowly again
일하다 일했다 | work worked | person | - | - | quickly quietly
공부하다 공부했다 | study studied | person | - | - | quietly again
쉬다 쉬었다 | rest rested | person animal | - | - | quietly again
놀다 놀았다 | play played | child boy girl animal | - | - | quietly again
앉다 앉았다 | sit sat | person animal | - | - | quietly slowly
가다 갔다 | go went | person animal | - | 에 at in | quickly again
오다 왔다 | come came | person animal | - | 에 at in | quietly again
달려가다 달려갔다 | run ran | person animal | - | 로 at in | quickly again
걸어가다 걸어갔다 | walk walked | person animal | - | 로 at in | slowly quietly
돌아가다 돌아갔다 | return returned | person animal | - | 로 at in | quickly slowly
""")

# The same, of verbs whose object is a sentence.
SAYINGS = read_verbs("""
말하다 말했다 | say said
생각하다 생각했다 | think thought
믿다 믿었다 | believe believed
""")

MANNERS = entries("빨리 quickly, 천천히 slowly, 조용히 quietly, 크게 loudly, 다시 again")

# Korean, English, links, and the tenses it goes with.
TIMES = rows("""
어제 | yesterday | 0-0 | past
지난주에 | last week | 0-0 0-1 | past
오늘 | today | 0-0 | past future
내일 | tomorrow | 0-0 | future
다음 주에 | next week | 0-0 1-1 | future
매일 | every day | 0-0 0-1 | present
아침에 | in the morning | 0~0 0~1 0-2 | past present future
밤에 | at night | 0~0 0-1 | past present future
월요일에 | on Monday | 0~0 0-1 | past future
금요일에 | on Friday | 0~0 0-1 | past future
""")


@cache
def nouns(kinds: str) -> tuple[Noun, ...]:
    """The nouns of these kinds, e.g. of `fruit bread`."""
    names = kinds.split()
    return tuple(noun for noun in NOUNS if noun.kind in names or noun.english in names)


@cache
def adjectives(noun: Noun) -> tuple[tuple[str, str], ...]:
    """What can be said of a noun, in Korean and English."""
    fitting = (row for row in ADJECTIVES if noun in nouns(" ".join(row[2:])))
    return tuple((korean, english.rstrip(":")) for korean, english, *_ in fitting)
