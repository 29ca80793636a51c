"""YAML is read without its traps, and every key knows its line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.config.strict_yaml import MAX_DEPTH, StrictYAMLError, dump, parse


def problem(text):
    with pytest.raises(StrictYAMLError) as caught:
        parse(text)
    return f"{caught.value.line}: {caught.value.text}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.0e-3", 0.001),
        ("5E4", 50000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e-x", "1e-x"),
        ("٣", "٣"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'~'", "~"),
        ("''", ""),
        ("|\n  1", "1"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
    ],
)
def test_a_scalar_is_what_it_looks_like(text, value):
    found = parse(f"key: {text}").values["key"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text_whatever_they_look_like():
    assert parse("1: a\nnull: b\n~: c\nno: d").values == {
        "1": "a",
        "null": "b",
        "~": "c",
        "no": "d",
    }


def test_a_merge_key_is_an_ordinary_key():
    assert parse("<<: {a: 1}\nb: 2").values == {"<<": {"a": 1}, "b": 2}


def test_each_key_remembers_its_line():
    text = "# comment\na: 1\nb:\n  c: {d: 2,\n      e: 3}\n  f:\n\n    text\n"
    assert parse(text).lines == {
        (): 2,
        ("a",): 2,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", "d"): 4,
        ("b", "c", "e"): 5,
        ("b", "f"): 6,
    }


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "null\n"])
def test_nothing_is_null(text):
    assert parse(text).values is None


def test_duplicate_keys_are_all_found_and_the_first_value_is_kept():
    document = parse("a: 1\nb:\n  c: 2\n  c: 3\na: 4\na: 5")
    assert document.values == {"a": 1, "b": {"c": 2}}
    assert document.duplicates == [
        (4, "duplicate key 'b.c', first set on line 3; remove one"),
        (5, "duplicate key 'a', first set on line 1; remove one"),
        (6, "duplicate key 'a', first set on line 1; remove one"),
    ]
    assert document.lines["a",] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb:\n\tc: 2",
            r"3: is not valid YAML: while scanning for the next token, found character '\t' that "
            "cannot start any token; indent with spaces, not tabs",
        ),
        ("a: 1\n b: 2", "2: is not valid YAML: mapping values are not allowed here"),
        (
            "a: [1,\nb: 2\nc: 3",
            "3: is not valid YAML: while parsing a flow sequence that starts on line 1, "
            "expected ',' or ']', but got ':'",
        ),
        (
            "a: 1\n---\nb: 2",
            "2: is not valid YAML: expected a single document in the stream that starts on line 1, "
            "but found another document",
        ),
        (
            "a: 1\nb: !!python/object/apply:os.system ['echo']",
            "2: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is refused; "
            "write a plain value",
        ),
        ("a: !!str 1", "1: the tag 'tag:yaml.org,2002:str' is refused; write a plain value"),
        ("a: !x {b: 1}", "1: the tag '!x' is refused; write a plain value"),
        ("a: &x 1", "1: anchors (&) and aliases (*) are refused; repeat the value"),
        ("a: 1\nb: *x", "2: anchors (&) and aliases (*) are refused; repeat the value"),
        ("&x [*x]", "1: anchors (&) and aliases (*) are refused; repeat the value"),
        ("? [a]\n: 1", "1: a key must be a word, but is a list or a mapping"),
        ("a: 1\n\nb: \x01", r"3: the character '\x01' is not allowed; remove it"),
        ('a: 1\nb: "\\ud800"', "2: an escape in a quoted text is not a Unicode character"),
        ('a: 1\n"\\ud800": 1', "2: an escape in a quoted text is not a Unicode character"),
        ('a: 1\nb: "\\U00110000"', "2: an escape or a directive is out of range; remove it"),
        ('a: 1\nb: "\\Uffffffff"', "2: an escape or a directive is out of range; remove it"),
        ("a: 1\nb: " + "9" * 5000, "2: a number has too many digits; shorten it"),
        ("[" * 100_000, f"1: is nested more than {MAX_DEPTH} deep; flatten it"),
    ],
)
def test_broken_yaml_is_one_line_with_its_line(text, message):
    assert problem(text) == message


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029"])
def test_what_yaml_takes_for_line_ends_survives_writing(mark):
    assert parse(dump({"a": f"b{mark}c"})).values == {"a": f"b{mark}c"}


def test_siblings_do_not_count_as_depth():
    assert len(parse("\n".join(f"k{i}: [1]" for i in range(2 * MAX_DEPTH))).values) == 2 * MAX_DEPTH


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"))
    | st.sampled_from(["no", "1e-3", "1_0", "010", "12:30", "~", "null", "a: b", "# a", "- a", "="])
)


@given(st.dictionaries(st.text("abc.~0 ", min_size=1), scalars, min_size=1))
def test_dumped_values_are_read_back(values):
    found = parse(dump(values)).values
    assert found == values
    assert [type(value) for value in found.values()] == [type(v) for v in values.values()]


YAML_PIECES = r"""
a b: : - { } [ ] , ' " | > # ? ! !!str &a *a <<: |+2 !<%ff> \x41 \U0011ffff \ud800 1e5 010 ~ é
"""
PIECES = [*YAML_PIECES.split(), "\n", " ", "  ", "\t", "- ", ": ", "%YAML 1.1\n", "---\n", "...\n"]


@settings(max_examples=500, deadline=None)
@given(st.text() | st.lists(st.sampled_from([*PIECES, "\u2028", "\x85", "\ufeff"])).map("".join))
def test_any_text_is_a_document_or_a_problem_of_one_line(text):
    try:
        parse(text)
    except StrictYAMLError as error:
        line, said = error.line, error.text
    else:
        line, said = 1, ""
    assert line >= 1
    assert "\n" not in said
