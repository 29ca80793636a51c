"""`nmt train` in a process of its own: a signal ends it politely, and another process goes on."""

import signal
import subprocess
import sys
import time

import pytest

# `nmt train`, but after step 4 it does not go on before somebody has told it to stop
PROGRAM = """
import time
from nmt.cli.main import main
from nmt.cli.training_run import Hooks

on_step = Hooks.on_step

def wait_at_step_4(self, report):
    on_step(self, report)
    while report.step == 4 and not self.should_stop():
        time.sleep(0.01)

Hooks.on_step = wait_at_step_4
main()
"""


def read_until(process, text):
    """Read what a process says until a line has the text in it."""
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"the process ended without saying {text!r}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_and_another_process_goes_on_exactly(trainer, straight, same_state, number):
    once = "validation.every=100"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "train", "--config", "config.yaml", "--set", once],
        stderr=subprocess.PIPE,
        text=True,
    )
    read_until(process, "step 4/12: ")
    began = time.monotonic()
    process.send_signal(number)
    rest = process.stderr.read()
    asked = f"{number.name}: finishing this step and saving"
    again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
    assert rest == f"{asked}{again}\nstopped at step 4; continue with --resume\n"
    assert process.wait(timeout=30) == 128 + number
    assert time.monotonic() - began < 10

    resumed = trainer(once, resume=True)
    assert resumed.weights == straight(once).weights
    assert same_state(resumed.state, straight(once).state)
    assert resumed.events == straight(once).events
