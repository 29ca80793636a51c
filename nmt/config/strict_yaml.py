"""YAML without its traps: what looks like text is text, and every key remembers its line.

PyYAML reads `no` as false, `010` as 8, `12:30` as 750, `1e-3` as text, and lets the last of two
equal keys win. Here the scalars are those of YAML 1.2 with decimal numbers only, duplicate keys
are reported, and tags, anchors and aliases are refused, so a file cannot run code or explode.
"""

import re
from dataclasses import dataclass
from typing import TypeAlias

import yaml

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
KeyPath: TypeAlias = tuple[str, ...]

MAX_SIZE = 1 << 17
"""Most bytes of a file; a config with all keys has some thousand."""
MAX_DEPTH = 20
MAX_NODES = 1000
"""Most keys, values and sections together."""
NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
# A float has a dot or an exponent: `010` is neither, stays text, and the schema refuses it.
FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)\Z"
)


class StrictYAMLError(Exception):
    """The text cannot be read as strict YAML."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"{line}: {text}")
        self.line = line
        self.text = text


@dataclass(frozen=True)
class Document:
    """What a YAML text says, and where it says it."""

    values: Value
    lines: dict[KeyPath, int]
    """The 1-based line of each key; `()` is the line on which the content starts."""
    duplicates: list[tuple[int, str]]
    """The line of each repeated key, and what to say about it. The first value is kept."""


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes, and refuses what is not plain: tags, anchors, aliases, endless nesting."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if event.anchor is not None:
            raise StrictYAMLError(line, "anchors (&) and aliases (*) are refused; repeat the value")
        if getattr(event, "tag", None) is not None:
            raise StrictYAMLError(line, f"the tag {event.tag!r} is refused; write a plain value")
        if self.depth == MAX_DEPTH:
            raise StrictYAMLError(line, f"is nested more than {MAX_DEPTH} deep; flatten it")
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise StrictYAMLError(line, f"has more than {MAX_NODES:,} keys and values; shorten it")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _PlainDumper(yaml.SafeDumper):
    """Quotes every text that this module or YAML 1.1 would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes U+0085 and its like as they are, and reads them back as line ends.
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_PlainDumper.add_representer(str, _PlainDumper.represent_str)
_PlainDumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def parse(text: str) -> Document:
    """Read one YAML document.

    Raises:
        StrictYAMLError: for broken or refused YAML; the error knows its line.
    """
    try:
        loader = _PlainLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise StrictYAMLError(
            line, f"the character {chr(error.character)!r} is not allowed; remove it"
        ) from None
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except (ValueError, OverflowError):  # from chr("\Uffffffff"), or int() of a directive
        raise StrictYAMLError(
            loader.line + 1, "an escape or a directive is out of range; remove it"
        ) from None
    if root is None:
        return Document(None, {(): 1}, [])
    lines: dict[KeyPath, int] = {(): root.start_mark.line + 1}
    duplicates: list[tuple[int, str]] = []
    return Document(_construct(root, (), lines, duplicates), lines, duplicates)


def dump(values: dict[str, Value]) -> str:
    """Write values as YAML, keys in their order; `parse` and any YAML 1.1 reader read them back."""
    return yaml.dump(
        values, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=2**31 - 1
    )


def _syntax_error(error: yaml.MarkedYAMLError) -> StrictYAMLError:
    """The error in one line; a construct that began elsewhere is named with its line."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    context = error.context
    if context and error.context_mark and error.context_mark.line + 1 < line:
        context += f" that starts on line {error.context_mark.line + 1}"
    problem = ", ".join(part for part in (context, error.problem) if part)
    advice = "; indent with spaces, not tabs" if r"'\t'" in problem else ""
    return StrictYAMLError(line, f"is not valid YAML: {problem}{advice}")


def _construct(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], duplicates: list[tuple[int, str]]
) -> Value:
    """The value of a node at a path; its keys are added to the lines or to the duplicates."""
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(item, (*path, str(index)), lines, duplicates)
            for index, item in enumerate(node.value)
        ]
    values: dict[str, Value] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise StrictYAMLError(line, "a key must be a word, but is a list or a mapping")
        key = _text(key_node)
        inner = (*path, key)
        if key in values:
            dotted = ".".join(inner)
            text = f"duplicate key {dotted!r}, first set on line {lines[inner]}; remove one"
            duplicates.append((line, text))
        else:
            values[key] = _construct(value_node, inner, lines, duplicates)
            lines[inner] = line
    return values


def _scalar(node: yaml.ScalarNode) -> Value:
    """Only a plain scalar can be null, a truth value or a number: quotes make text."""
    text = _text(node)
    if node.style is not None:
        return text
    if NULL.match(text):
        return None
    if BOOL.match(text):
        return text.lower() == "true"
    if INT.match(text):
        try:
            return int(text)
        except ValueError:  # Python reads no more than 4300 digits
            line = node.start_mark.line + 1
            raise StrictYAMLError(line, "a number has too many digits; shorten it") from None
    return float(text) if FLOAT.match(text) else text


def _text(node: yaml.ScalarNode) -> str:
    """The text of a scalar, which a YAML escape may have filled with half a surrogate pair."""
    text: str = node.value
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        line = node.start_mark.line + 1
        raise StrictYAMLError(line, "an escape in a quoted text is not a Unicode character")
    return text
