"""The list of fault cases is complete: each number has a test."""

import re
from pathlib import Path

NUMBERS = range(1, 49)


def test_every_fault_case_has_a_test():
    found = {
        int(number)
        for path in Path(__file__).parent.glob("test_*.py")
        for number in re.findall(r"^ *def test_f(\d\d)_", path.read_text("utf-8"), re.MULTILINE)
    }
    assert found == set(NUMBERS)
