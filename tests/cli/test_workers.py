"""Worker processes: the same bytes, no process left behind, and one clear line if one dies."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nmt.cli import workers
from nmt.cli.workers import TASK_LINES, Workers, plan, share_cores, translate_lines
from nmt.errors import TrainingError
from nmt.translator import Hypothesis, Translation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


class Echo:
    """A translator whose translation is its process; some words make it do other things."""

    device = torch.device("cpu")
    src_tokenizer = SimpleNamespace(encode=lambda sentences: [list(s) for s in sentences])

    def __init__(self):
        self.settled = []

        self.has_changed = False

    def settle(self, sentences):
        self.settled.append(sentences)
        changed, self.has_changed = self.has_changed, False
        return changed

    def translate(self, sentences):
        if "fail" in sentences:
            raise ValueError("a bug")
        if "give up" in sentences:
            raise TrainingError("out of memory: it is; do that")
        if "die" in sentences:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)  # so that no worker does everything
        hypothesis = Hypothesis(str(os.getpid()), -0.1, -1 / 3, ["a", "</s>"], [0.1, 1e-300], [4])
        return [Translation(s, [hypothesis] * 2, num_pieces=3) for s in sentences]


def echo(lines, *, window=1024, workers=2):
    with closing(translate_lines(Echo(), lines, window=window, workers=workers)) as found:
        return list(found)


def children(pid):
    """The processes that a process has started and that still run."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_all_workers_take_part_and_none_is_left():
    found = echo([f"line {i}" for i in range(300)], workers=3)
    pids = {translation.text for translation in found}
    assert len(pids) == 3
    assert str(os.getpid()) not in pids
    assert not pids & set(children(os.getpid()))


def test_translations_come_back_whole_and_in_order():
    lines = [f"{'x' * (7 * i % 50)} {i} \u2028 ü\0" for i in range(100)]
    found = echo(lines)
    assert [translation.src for translation in found] == lines
    text = found[0].text
    hypothesis = Hypothesis(text, -0.1, -1 / 3, ["a", "</s>"], [0.1, 1e-300], [4])
    assert found[0] == Translation(lines[0], [hypothesis, hypothesis], num_pieces=3)


@pytest.mark.parametrize(
    ("num_lines", "window", "workers"), [(TASK_LINES, 1024, 2), (100, 1, 2), (100, 1024, 1)]
)
def test_little_to_do_is_done_in_this_process(num_lines, window, workers):
    found = echo([str(i) for i in range(num_lines)], window=window, workers=workers)
    assert {translation.text for translation in found} == {str(os.getpid())}


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_what_is_prepared_depends_on_what_is_to_be_done_and_not_on_who_does_it(limit):
    translator = Echo()
    with Workers(translator, limit) as pool:
        for tasks in ([["a", "b"]], [["c", "d"], ["e"]], [["f"], ["g"]]):
            pool.translate(tasks)
    assert translator.settled == [["a", "b"], ["c", "d", "e"], ["f", "g"]]


def test_processes_without_what_has_been_prepared_are_replaced():
    translator, tasks = Echo(), [["a"], ["b"]]
    with Workers(translator, 2) as pool:

        def pids():
            return {translation.text for task in pool.translate(tasks) for translation in task}

        first = pids()
        assert pids() <= first
        translator.has_changed = True
        assert not pids() & first
        assert len(children(os.getpid())) == 2
    assert not children(os.getpid())


CHANGING = """
import json, sys
from nmt import decoding
from nmt.cli.workers import translate_lines
from nmt.model import compiled
import nmt

run, text, workers = sys.argv[1:]
translator, lines, loaded = nmt.load(run, device="cpu"), open(text).read().splitlines(), []
lengths = [len(ids) + 1 for ids in translator.src_tokenizer.encode(lines[:40])]
seconds_saved = translator.searcher.prepare().decoder.seconds_saved
decoding.LOADING_SECONDS = 2.5 * seconds_saved(lengths, translator.options.beam_size)
for found in translate_lines(translator, lines, window=40, workers=int(workers)):
    loaded.append(compiled.is_loaded())
    print([(h.token_ids, h.score.hex()) for h in found.hypotheses])
assert not loaded[0] and loaded[-1], loaded
"""


def test_loops_that_are_loaded_meanwhile_are_so_for_all_workers_at_once(tiny, write):
    text = write("text", "".join(f"{line}\n" for line in tiny.lines("train.ko")[:200]))

    def out(workers):
        command = [sys.executable, "-c", CHANGING, str(tiny.run), str(text), str(workers)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    alone = out(1)
    assert alone.count("\n") == 200
    assert alone == out(2) == out(3)


def test_a_line_is_answered_before_the_next_is_read():
    read = []
    lines = (read.append(i) or str(i) for i in range(3))
    for number, _ in enumerate(translate_lines(Echo(), lines, window=1, workers=2), 1):
        assert len(read) == number


def test_no_lines_are_no_translations():
    assert echo([]) == []


@pytest.mark.parametrize("num_lines", [1, 31, 32, 33, 64, 65, 100, 1024])
def test_a_window_is_cut_into_even_tasks_longest_line_first(num_lines):
    sentences = ["x" * (37 * i % 101) for i in range(num_lines)]
    tasks = plan(Echo(), sentences)
    order = [i for task in tasks for i in task]
    assert sorted(order) == list(range(num_lines))
    lengths = [len(sentences[i]) for i in order]
    assert lengths == sorted(lengths, reverse=True)
    sizes = {len(task) for task in tasks}
    assert max(sizes) <= TASK_LINES
    assert max(sizes) - min(sizes) <= 1
    assert len(tasks) == -(-num_lines // TASK_LINES)


def test_a_killed_worker_is_named():
    with pytest.raises(TrainingError) as caught:
        echo([*map(str, range(100)), "die"])
    assert str(caught.value) == (
        "a worker process was killed by SIGKILL; if memory is short, use --workers 1 or a "
        "smaller --batch-tokens"
    )
    assert not children(os.getpid())


def test_a_bug_in_a_worker_shows_its_traceback_and_exits_with_1(capfd):
    with pytest.raises(SystemExit) as caught:
        echo([*map(str, range(100)), "fail"])
    assert caught.value.code == 1
    err = capfd.readouterr().err
    assert err.count("ValueError: a bug\n") == 1
    assert err.endswith("error: a worker process failed\n")


def test_each_process_has_one_thread_and_each_core_a_process(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert share_cores(None) == 3
        assert torch.get_num_threads() == 1
        assert share_cores(None) == 1
        assert share_cores(5) == 5
        monkeypatch.setattr(workers, "can_fork", lambda: False)
        torch.set_num_threads(3)
        assert share_cores(None) == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def text(tiny, write):
    """A file of 100 sentences, blank lines and doubles among them."""
    lines = [*tiny.lines("train.ko")[:60], "", *tiny.lines("test.ko"), *tiny.lines("test.ko")[:9]]
    return write("text", "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("options", [(), ("--format", "jsonl", "--n-best", "3")], ids=len)
def test_the_number_of_workers_changes_no_byte(nmt, tiny, text, options):
    def out(*more):
        ended = nmt("translate", "--model", tiny.run, "--input", text, *options, *more)
        assert (ended.code, ended.err) == (0, "")
        return ended.out

    alone = out("--workers", "1")
    assert alone.count("\n") >= 100
    assert alone == out("--workers", "2") == out("--workers", "7")


def test_eval_takes_workers_too(nmt, tiny):
    def scores(workers):
        files = ("--src", tiny.path("train.ko"), "--ref", tiny.path("train.en"))
        ended = nmt("eval", "--model", tiny.run, *files, "--json", "--workers", workers)
        assert (ended.code, ended.err) == (0, "")
        return json.loads(ended.out)

    assert scores(1) == scores(2)


@pytest.mark.parametrize("command", ["translate", "eval"])
def test_an_impossible_number_of_workers_is_refused(nmt, write, command, monkeypatch):
    write("text", "a\n")
    files = ("--src", "text", "--ref", "text") if command == "eval" else ()
    ended = nmt(command, "--model", "none", *files, "--workers", "0")
    assert (ended.code, ended.err) == (2, "error: --workers: must be at least 1, but is 0\n")
    monkeypatch.setattr(workers, "can_fork", lambda: False)
    ended = nmt(command, "--model", "none", *files, "--workers", "2")
    message = f"error: --workers: must be 1 on {sys.platform}, but is 2\n"
    assert (ended.code, ended.err) == (2, message)


@pytest.fixture
def working(tiny, tmp_path):
    """`nmt translate` in a process group of its own, in the middle of a long text."""
    text = "".join(f"{line}\n" for line in tiny.lines("train.ko") * 50)
    (tmp_path / "long").write_text(text, encoding="utf-8")
    options = ["--input", str(tmp_path / "long"), "--buffer", "100", "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "nmt", "translate", "--model", tiny.run, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline()
        pids = children(process.pid)
        assert len(pids) == 2
        yield process, pids
        process.kill()


def gone(pids):
    """Wait until none of the processes runs any more."""
    deadline = time.monotonic() + 30
    while running := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, running
        time.sleep(0.02)
    return True


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_ctrl_c_is_answered_once_and_ends_all(working):
    process, pids = working
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"error: interrupted\n")
    assert gone(pids)


def test_a_closed_pipe_ends_all_quietly(working):
    process, pids = working
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    assert gone(pids)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 143, b"error: terminated\n"), (signal.SIGKILL, -signal.SIGKILL, b"")],
)
def test_workers_do_not_outlive_the_process_that_started_them(working, number, code, said):
    process, pids = working
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, said)
    assert gone(pids)


def test_a_worker_that_has_to_give_up_says_why():
    with pytest.raises(TrainingError, match=r"^out of memory: it is; do that$"):
        echo([*map(str, range(100)), "give up"])
    assert not children(os.getpid())


def test_a_killed_worker_ends_all_with_5(working):
    process, pids = working
    os.kill(int(pids[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5
    assert err.startswith(b"error: a worker process was killed by SIGKILL; ")
    assert err.count(b"\n") == 1
    assert gone(pids)
