"""Commands in a process of their own: pipes, signals, full disks, locales."""

import os
import signal
import subprocess
import sys
from threading import Timer

import pytest

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
OTHER, OTHER_TRANSLATION = "지우는 물을 보았다", "Zoé saw water"


@pytest.fixture
def interactive(tiny):
    """`nmt translate --buffer 1` with all its streams open, where the locale knows ASCII only."""
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    with subprocess.Popen(
        [sys.executable, "-m", "nmt", "translate", "--model", tiny.run, "--buffer", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | ascii_only,
        # What a shell starts in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        watchdog = Timer(30, process.kill)  # a line that is never answered fails, and does not hang
        watchdog.start()
        yield process
        watchdog.cancel()
        process.kill()


def ask(process, sentence):
    process.stdin.write(f"{sentence}\n".encode())
    process.stdin.flush()
    return process.stdout.readline().decode()


def test_with_buffer_1_each_line_is_answered_at_once_and_ctrl_c_ends_it(interactive):
    assert ask(interactive, SENTENCE) == f"{TRANSLATION}\n"
    assert ask(interactive, "") == "\n"
    assert ask(interactive, " \r") == "\n"
    assert ask(interactive, OTHER) == f"{OTHER_TRANSLATION}\n"
    interactive.send_signal(signal.SIGINT)
    out, err = interactive.communicate(timeout=60)
    assert (interactive.returncode, out, err) == (130, b"", b"error: interrupted\n")


def test_a_closed_pipe_ends_quietly_with_141(interactive):
    assert ask(interactive, SENTENCE) == f"{TRANSLATION}\n"
    interactive.stdout.close()  # what `head -1` does
    interactive.stdin.write(f"{SENTENCE}\n".encode() * 3)
    interactive.stdin.close()
    assert interactive.wait(timeout=60) == 141
    assert interactive.stderr.read() == b""


def test_a_closed_pipe_is_found_at_the_last_flush_too(nmt_process):
    reader, writer = os.pipe()
    os.close(reader)
    ended = nmt_process("schema", stdout=writer)
    os.close(writer)
    assert (ended.code, ended.err) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout_exits_with_5(nmt_process):
    with open("/dev/full", "wb") as full:
        ended = nmt_process("schema", stdout=full)
    assert ended.code == 5
    assert ended.err == "error: standard output: cannot be written: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_an_output_file_exits_with_5(nmt, tiny):
    ended = nmt("translate", "-m", tiny.run, "-i", tiny.path("test.ko"), "-o", "/dev/full")
    assert (ended.code, ended.out) == (5, "")
    assert ended.err == "error: /dev/full: cannot be written: No space left on device\n"
