"""Commands in the hands of a shell: pipes, streams, signals, locales, and bytes of any kind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Timer

import pytest

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
OTHER, OTHER_TRANSLATION = "지우는 물을 보았다", "Zoé saw water"

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


@pytest.fixture
def start():
    """Starts a command in a process of its own, which does not outlive the test."""
    started = []

    def run(*args, **options):
        process = subprocess.Popen(
            [sys.executable, "-m", "nmt", *map(str, args)],
            stdin=options.pop("stdin", subprocess.PIPE),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # What a shell starts in the background ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **options,
        )
        watchdog = Timer(90, process.kill)  # what never answers fails, and does not hang
        watchdog.start()
        started.append((process, watchdog))
        return process

    yield run
    for process, watchdog in started:
        watchdog.cancel()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                stream.close()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["while it translates", "at the end"])
def test_f41_a_closed_pipe_ends_with_141_and_without_a_word(start, tiny, stage):
    process = start("translate", "--model", tiny.run, "--buffer", "1")
    if stage == "while it translates":
        process.stdin.write(f"{SENTENCE}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline().decode() == f"{TRANSLATION}\n"
    process.stdout.close()  # what `head` does
    process.stdin.write(f"{SENTENCE}\n".encode() * 3)
    process.stdin.close()
    assert process.wait() == 141
    assert process.stderr.read() == b""


@pytest.mark.slow
def test_f42_the_first_line_comes_out_before_the_input_ends_and_stdout_holds_data_only(start, tiny):
    process = start("translate", "--model", tiny.run, "--buffer", "2")
    process.stdin.write(f"{SENTENCE}\n\n".encode())
    process.stdin.flush()
    assert process.stdout.readline().decode() == f"{TRANSLATION}\n"
    assert process.stdout.readline() == b"\n"
    process.stdin.write(b"%b\n\xff\n%b" % (OTHER.encode(), SENTENCE.encode()))
    process.stdin.close()
    first, _, third, end = process.stdout.read().decode().split("\n")
    assert (first, third, end) == (OTHER_TRANSLATION, TRANSLATION, "")
    assert process.stderr.read().decode() == (
        "warning: standard input: lines that are not valid UTF-8: 1 (the first is line 4); "
        "their bad bytes were read as U+FFFD\n"
    )
    assert process.wait() == 0


def test_f42_the_order_is_kept_across_windows_and_a_file_is_complete(nmt, tiny, tmp_path):
    sources = tiny.lines("test.ko")
    out = tmp_path / "out"
    ended = nmt(
        *("translate", "--model", tiny.run, "--buffer", "7", "--batch-tokens", "20"),
        *("--input", "-", "--output", out),
        stdin="".join(f"{line}\n" for line in sources),
    )
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert out.read_text(encoding="utf-8").split("\n")[:-1] == tiny.lines("test.en")


FILE_WRITERS = {
    "translate": ["-o", "out"],
    "score": ["--src", "-", "--tgt", "given", "-o", "out"],
    "attn-dump": ["--src", "-", "--jsonl", "out", "--html", "page", "--npz", "arrays"],
}
"""Commands that read stdin while their output files are open."""


@pytest.fixture
def writing(start, tiny, tmp_path):
    """A command that waits for input while its files are half written, above old ones."""

    def run(command):
        for name in ("out", "page", "arrays"):
            (tmp_path / name).write_text(f"old {name}")
        (tmp_path / "given").write_text(f"{TRANSLATION}\n" * 10_000)
        process = start(command, "--model", tiny.run, *FILE_WRITERS[command], cwd=tmp_path)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".*")):  # the files are open
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.stdin.write(f"{SENTENCE}\n".encode() * 300)
        process.stdin.flush()
        return process

    return run


def kept(folder):
    """The content of each file of a folder, hidden ones included."""
    return {path.name: path.read_text(errors="replace") for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number", "code", "message"),
    [
        ("translate", signal.SIGTERM, 143, b"error: terminated\n"),
        ("score", signal.SIGTERM, 143, b"error: terminated\n"),
        ("attn-dump", signal.SIGTERM, 143, b"error: terminated\n"),
        ("translate", signal.SIGHUP, 129, b"error: the terminal was closed\n"),
        ("translate", signal.SIGINT, 130, b"error: interrupted\n"),
    ],
)
def test_f42_a_command_that_is_told_to_end_leaves_the_old_file_and_no_other(
    writing, tmp_path, command, number, code, message
):
    process = writing(command)
    process.send_signal(number)
    _, err = process.communicate()
    assert (process.returncode, err) == (code, message)
    names = {"out", "given", "page", "arrays"}
    assert kept(tmp_path).keys() == names
    assert all(kept(tmp_path)[name] == f"old {name}" for name in names - {"given"})


@pytest.mark.slow
def test_f42_after_sigkill_the_old_file_is_whole_and_the_new_one_hidden(
    writing, nmt, tiny, tmp_path
):
    process = writing("translate")
    process.kill()
    process.communicate()
    assert (tmp_path / "out").read_text() == "old out"
    [stale] = tmp_path.glob(".*")  # nobody was left to remove it; the next command does not mind
    assert stale.name.startswith(".out.")
    ended = nmt("translate", "--model", tiny.run, "-o", tmp_path / "out", stdin=f"{SENTENCE}\n")
    assert (ended.code, ended.err) == (0, "")
    assert (tmp_path / "out").read_text() == f"{TRANSLATION}\n"


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
def test_f42_workers_end_with_a_command_that_is_told_to_end(start, tiny, tmp_path, to_group):
    text = "".join(f"{line}\n" for line in tiny.lines("train.ko") * 50)
    (tmp_path / "long").write_text(text, encoding="utf-8")
    process = start(
        *("translate", "--model", tiny.run, "--input", "long", "--output", "out"),
        *("--buffer", "100", "--workers", "2"),
        cwd=tmp_path,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(pids := children.read_text().split()) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    if to_group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert (process.returncode, err) == (143, b"error: terminated\n")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert kept(tmp_path).keys() == {"long"}


@pytest.mark.slow
@pytest.mark.parametrize(("locale", "utf8_mode"), [("C", False), ("POSIX", True)])
def test_f47_in_an_ascii_locale_text_is_utf8_all_the_same(
    nmt_process, tiny, tmp_path, locale, utf8_mode
):
    """Python puts a UTF-8 mode under such a locale unless it is told not to."""
    environment = os.environ | {"LC_ALL": locale}
    if not utf8_mode:
        environment |= {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    options = {"cwd": tmp_path, "env": environment}
    (tmp_path / "модель").symlink_to(tiny.run)
    ended = nmt_process(
        *("translate", "--model", "модель", "-o", "вывод"), stdin=f"{OTHER}\n".encode(), **options
    )
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (tmp_path / "вывод").read_text(encoding="utf-8") == f"{OTHER_TRANSLATION}\n"
    (tmp_path / "вход").write_bytes(f"{OTHER}\n".encode() + b"\xff\n")
    ended = nmt_process("attn-dump", "-m", "модель", "--src", "вход", "--html", "-", **options)
    assert ended.code == 0
    assert "<title>модель</title>" in ended.out
    assert OTHER in ended.out
    (tmp_path / "вход").write_text("\n")
    ended = nmt_process(
        *("eval", "--hyp", "вывод", "--ref", "вход", "--compare", "вывод", "--json"), **options
    )
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["significance"]["baseline"] == "вывод"
    ended = nmt_process("translate", "-m", "модель", "-i", "нет", **options)
    assert ended.code == 2
    assert ended.err.endswith(": cannot be read: No such file or directory\n")


ODD = [b"\n", b"\r", b"\r\n", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\t", b" ", b"|||"]
ODD += [text.encode() for text in ("\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\u3000", "𝄞")]
ODD += [text.encode() for text in (SENTENCE, OTHER, "ᄒ", "<s>", "</s>", "<unk>", "▁")]


def odd_bytes(seed):
    """Bytes that hold everything that anyone has ever taken for a line end, and raw noise."""
    draw = random.Random(seed)
    parts = [draw.choice(ODD) if draw.random() < 0.8 else draw.randbytes(3) for _ in range(400)]
    return b"".join(parts)


def assert_lines_are_kept(nmt, tiny, data):
    arguments = ("translate", "--model", tiny.run, "--beam-size", "1", "--max-length", "5")
    ended = nmt(*arguments, stdin=data)
    assert ended.code == 0
    raw = data.removesuffix(b"\n").split(b"\n") if data else []
    assert len(ended.out.encode().split(b"\n")) - 1 == len(raw)
    lines = [json.loads(line) for line in nmt(*arguments, "--format", "jsonl", stdin=data).lines]
    assert [line["line"] for line in lines] == list(range(1, len(raw) + 1))
    assert [line["hypotheses"][0]["text"] for line in lines] == ended.lines
    for line, source in zip(lines, raw, strict=True):
        text = source.removeprefix(b"\xef\xbb\xbf") if line["line"] == 1 else source
        text = text.removesuffix(b"\r").replace(b"\r", b" ").decode("utf-8", "replace")
        assert line["src"] == text


@pytest.mark.parametrize("seed", range(3))
def test_r10_line_n_stays_line_n_for_any_bytes(nmt, tiny, seed):
    assert_lines_are_kept(nmt, tiny, odd_bytes(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 40))
def test_r10_line_n_stays_line_n_for_many_more_bytes(nmt, tiny, seed):
    assert_lines_are_kept(nmt, tiny, odd_bytes(seed))


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"\n\n", b"\0", b"\r", b"\xff", b"\xef\xbb\xbf", b"a"]
)
def test_r10_line_n_stays_line_n_for_hardly_any_bytes(nmt, tiny, data):
    assert_lines_are_kept(nmt, tiny, data)


@pytest.mark.parametrize("beam_size", [1, 5])
def test_r11_batches_change_no_text_and_no_score(nmt, tiny, beam_size):
    """One, seven or all sentences at a time, and batches of one sentence at most."""
    text = "".join(f"{line}\n" for line in [*tiny.lines("test.ko"), "", *tiny.lines("valid.ko")])

    def translations(*options):
        ended = nmt(
            *("translate", "--model", tiny.run, "--beam-size", beam_size, "--format", "jsonl"),
            *("--n-best", beam_size, *options),
            stdin=text,
        )
        assert (ended.code, ended.err) == (0, "")
        return [json.loads(line)["hypotheses"] for line in ended.lines]

    whole = translations("--buffer", "64", "--batch-tokens", "4096")
    assert len(whole) == 51
    for options in (("--buffer", "1"), ("--buffer", "7"), ("--batch-tokens", "1")):
        for expected, found in zip(whole, translations(*options), strict=True):
            assert [h["text"] for h in found] == [h["text"] for h in expected]
            assert [h["tokens"] for h in found] == [h["tokens"] for h in expected]
            for key in ("score", "log_prob", "token_log_probs"):
                for one, other in zip(found, expected, strict=True):
                    assert one[key] == pytest.approx(other[key], abs=1e-5)
