"""The live view of a training run: a bar on a terminal, else a line now and then."""

import math
import sys
import time

from tqdm import tqdm

from nmt.cli.messages import say
from nmt.training.trainer import StepReport


class Window:
    """Means over the steps since the last report."""

    def __init__(self) -> None:
        self.loss = self.nll = 0.0
        self.tokens = self.timed_tokens = 0
        self.began = time.perf_counter()

    def add(self, report: StepReport) -> None:
        """Take in a step."""
        self.loss += report.loss * report.tokens
        self.nll += report.nll * report.tokens
        self.tokens += report.tokens
        self.timed_tokens += report.tokens

    def state_dict(self) -> dict[str, float]:
        """What a run that goes on needs for the means to be those of all steps."""
        return {"loss": self.loss, "nll": self.nll, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with a window that was not yet reported; its time is not that of this process."""
        self.loss, self.nll, self.tokens = state["loss"], state["nll"], int(state["tokens"])

    def values(self) -> dict[str, float]:
        """Loss and perplexity per target token, and target tokens per second of wall time."""
        return {
            "loss": round(self.loss / self.tokens, 4),
            "perplexity": round(math.exp(min(self.nll / self.tokens, 700.0)), 4),
            "tokens_per_second": round(self.timed_tokens / (time.perf_counter() - self.began), 1),
        }


class TrainingBar:
    """Shows where a run stands: step, loss, perplexity, speed, learning rate, BLEU, time left."""

    def __init__(self, step: int, max_steps: int) -> None:
        self.live = sys.stderr.isatty()
        self.max_steps = max_steps
        self.first_step, self.began = step, time.monotonic()
        self.score = ""
        self.bar = tqdm(
            total=max_steps,
            initial=step,
            disable=not self.live,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def advance(self) -> None:
        """One step is done."""
        self.bar.update()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Show the means of the last steps."""
        text = (
            f"loss {values['loss']:.3f}, ppl {values['perplexity']:.2f}, "
            f"{values['tokens_per_second']:,.0f} tok/s, lr {values['learning_rate']:.2e}"
            + self.score
        )
        if self.live:
            self.bar.set_postfix_str(text, refresh=False)
        else:
            per_step = (time.monotonic() - self.began) / max(step - self.first_step, 1)
            left = tqdm.format_interval(per_step * (self.max_steps - step))
            say(f"step {step:,}/{self.max_steps:,}: {text}, {left} left")

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self.live:
            tqdm.write(message, file=sys.stderr)
        else:
            say(message)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
