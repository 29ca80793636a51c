"""Token ids → token ids: the model and the search together."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from nmt.data.batches import Batch, make_batch
from nmt.errors import ConfigError, TrainingError
from nmt.memory import free_memory, is_out_of_memory, keep_freed_memory, memory_in_use
from nmt.model import compiled
from nmt.model.decoder import DecoderState
from nmt.model.folded import FoldedDecoder, fold
from nmt.model.folded_encoder import FoldedEncoder
from nmt.model.logits import Logits
from nmt.model.restricted import RestrictedDecoder
from nmt.model.seq2seq import Seq2Seq
from nmt.search.beam import Hypothesis, State, Step, beam_search
from nmt.search.extend import Best, Rules, best_extensions
from nmt.text.tokenizer import BOS_ID, EOS_ID, PAD_ID

EXTRA_LENGTH = 10  # tokens that a translation may have beyond max_length_ratio × source tokens

LOADING_SECONDS = 0.5
"""What it takes to load compiled loops."""

SAMPLE_SIZE = 4096  # weights of a matrix that are looked at to see whether it has changed

Shortlist = Callable[[Sequence[int]], np.ndarray]
"""Source token ids, without </s> → sorted target token ids that may be used, specials included."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search. What a config can say has no default here: its schema has them.

    Raises:
        ConfigError: if the options contradict each other.
    """

    beam_size: int
    n_best: int = 1
    length_penalty: float
    """Exponent of the length penalty; 0 is none."""
    min_length: int
    """Fewest tokens of a translation."""
    max_length_ratio: float
    """Most target tokens per source token, `EXTRA_LENGTH` more being allowed."""
    max_length: int | None = None
    """Most tokens of a translation, whatever the length of the source."""
    batch_tokens: int
    """Source positions that are decoded together, padding included."""

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ConfigError(f"beam size: must be at least 1, but is {self.beam_size}")
        if not 1 <= self.n_best <= self.beam_size:
            raise ConfigError(
                f"n-best: must be between 1 and the beam size {self.beam_size}, but is "
                f"{self.n_best}; raise the beam size"
            )
        if not 0 <= self.length_penalty <= 10:
            raise ConfigError(
                f"length penalty: must be a number from 0 to 10, but is {self.length_penalty}"
            )
        if self.min_length < 0:
            raise ConfigError(f"min length: must be at least 0, but is {self.min_length}")
        if self.max_length is not None and self.max_length < max(self.min_length, 1):
            raise ConfigError(
                f"max length: must be at least the min length {max(self.min_length, 1)}, "
                f"but is {self.max_length}"
            )
        if self.batch_tokens < 1:
            raise ConfigError(f"batch tokens: must be at least 1, but is {self.batch_tokens}")

    def max_lengths(self, src_lengths: np.ndarray) -> np.ndarray:
        """Most target tokens for sources of the given numbers of tokens, without `</s>`."""
        longest = np.ceil(self.max_length_ratio * src_lengths) + EXTRA_LENGTH
        if self.max_length is not None:
            longest = np.minimum(longest, self.max_length)
        return np.maximum(longest, max(self.min_length, 1)).astype(np.int64)


@dataclass(frozen=True)
class Folded:
    """A model rewritten for search."""

    weights: Tensor
    """What tells whether it is that of the weights as they are."""
    encoder: FoldedEncoder | None
    """None where the encoder itself is faster."""
    decoder: FoldedDecoder

    def settle(self, num_tokens: int, beam_size: int) -> int:
        """Make the tables that pay, given how many source tokens are to be read next.

        About as many target tokens are for each hypothesis of the beam. From then on no others are
        made while searching.

        Returns:
            How many tables there are.
        """
        sources = [] if self.encoder is None else self.encoder.tokens
        for tokens in sources:
            tokens.settle(num_tokens)
        self.decoder.tokens.settle(num_tokens * beam_size)
        return sum(tokens.table is not None for tokens in (*sources, self.decoder.tokens))


class Searcher:
    """Finds the best hypotheses of sources.

    Args:
        precision: type of the matrix products, a float type or int8; None is that of the weights.
        shortlist: of each source the target tokens that may be used; None is all.

    Attributes:
        is_settled: whether only `settle` prepares anything; else each search does, when it pays.
    """

    def __init__(
        self,
        model: Seq2Seq,
        device: torch.device,
        precision: torch.dtype | None = None,
        shortlist: Shortlist | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.int8 = precision == torch.int8
        self.shortlist = shortlist
        self.is_settled = False
        self._settled = (False, 0)  # loops loaded, number of tables
        self._folded: Folded | None = None
        self._seconds_lost = 0.0
        if device.type == "cpu":
            keep_freed_memory()

    def __call__(self, sources: list[list[int]], options: SearchOptions) -> list[list[Hypothesis]]:
        """The best hypotheses for sources of token ids, each at least one token long.

        Raises:
            TrainingError: if memory is not enough for a single one.
        """
        folded = self.prepare()
        found: list[list[Hypothesis]] = [[] for _ in sources]
        lengths = np.array([len(token_ids) + 1 for token_ids in sources])
        if not self.is_settled:
            self._load_if_it_pays(lengths.tolist(), options.beam_size)

        def search(indices: list[int]) -> None:
            empty = np.zeros(0, np.int64)
            batch = make_batch(
                [np.array(sources[i]) for i in indices], [empty for _ in indices]
            ).to(self.device)
            max_lengths = torch.from_numpy(options.max_lengths(lengths[indices] - 1))
            results = self._search(
                batch, folded, max_lengths.to(self.device), options, [sources[i] for i in indices]
            )
            for i, hypotheses in zip(indices, results, strict=True):
                found[i] = hypotheses

        def too_large(i: int) -> str:
            other = "--device cpu" if self.device.type == "cuda" else "fewer --workers"
            return (
                f"a source of {lengths[i] - 1} tokens cannot be translated with a beam of "
                f"{options.beam_size} ({memory_in_use(self.device)}); use a smaller beam or {other}"
            )

        run_batches(search, lengths, options.batch_tokens, self.device, too_large)
        return found

    @torch.no_grad()
    def _search(
        self,
        batch: Batch,
        folded: Folded,
        max_lengths: Tensor,
        options: SearchOptions,
        sources: Sequence[Sequence[int]],
    ) -> list[list[Hypothesis]]:
        decoder = folded.decoder
        if folded.encoder is not None:
            encoded = folded.encoder(batch.src, batch.src_mask)
        else:
            with autocast(self.device, self.precision):
                encoded = self.model.encoder(batch.src, batch.src_mask)
        if self.shortlist is None:

            def step(token_ids: Tensor, state: DecoderState) -> tuple[Logits, DecoderState]:
                logits, _, state = decoder.step(token_ids, state)
                return logits, state

            start = decoder.start(encoded, options.beam_size)
            return _beam_search(step, start, max_lengths, options, PAD_ID, BOS_ID, EOS_ID)
        allowed = [torch.tensor(self.shortlist(src), dtype=torch.long) for src in sources]
        allowed = [token_ids.to(self.device) for token_ids in allowed]
        restricted = RestrictedDecoder(decoder, allowed)
        special_ids = torch.tensor([PAD_ID, BOS_ID, EOS_ID], device=self.device)
        pad, bos, eos = restricted.places(special_ids).tolist()
        start_restricted = restricted.start(encoded, options.beam_size)
        found = _beam_search(restricted.step, start_restricted, max_lengths, options, pad, bos, eos)
        token_ids = restricted.token_ids.tolist()
        return [
            [replace(h, token_ids=[token_ids[place] for place in h.token_ids]) for h in hypotheses]
            for hypotheses in found
        ]

    def settle(self, lengths: Sequence[int], beam_size: int) -> bool:
        """Prepare what pays, given the lengths of all sources that are searched next.

        From then on nothing else changes how they are searched, in this process or in those that
        are forked from it: so they round alike.

        Returns:
            Whether there is more than before, which processes forked until then do not have.
        """
        self.is_settled = True
        self._load_if_it_pays(lengths, beam_size)
        before = self._settled
        num_tables = self.prepare().settle(sum(lengths), beam_size)
        self._settled = compiled.is_loaded(), num_tables
        return self._settled != before

    def prepare(self) -> Folded:
        """The model rewritten for search, made anew only if its weights have changed."""
        weights = _fingerprint(self.model)
        if self._folded is None or not torch.equal(self._folded.weights, weights):
            decoder = fold(
                self.model.decoder, self.precision, is_restricted=self.shortlist is not None
            )
            is_cpu = self.device.type == "cpu"
            encoder = FoldedEncoder(self.model.encoder, decoder.precision) if is_cpu else None
            self._folded = Folded(weights, encoder, decoder)
            if self.is_settled:
                self._folded.settle(0, 0)
        return self._folded

    def _load_if_it_pays(self, lengths: Sequence[int], beam_size: int) -> None:
        """Load the compiled loops once it has cost as much to be without them as it takes."""
        if compiled.is_loaded():
            return
        self._seconds_lost += self.prepare().decoder.seconds_saved(lengths, beam_size)
        if self._seconds_lost >= LOADING_SECONDS:
            compiled.load_for_search()


def _fingerprint(model: nn.Module) -> Tensor:
    """Numbers that change when the weights do: their versions, all biases, and a sample.

    Fused optimizers do not raise the version, but they move every weight.
    """
    numbers = []
    for parameter in model.parameters():
        step = 1 if parameter.dim() == 1 else max(1, parameter.numel() // SAMPLE_SIZE)
        numbers.append(parameter.detach().flatten()[::step])
    versions = [float(parameter._version) for parameter in model.parameters()]
    return torch.cat([*numbers, numbers[0].new_tensor(versions)])


def run_batches(
    run: Callable[[list[int]], None],
    lengths: np.ndarray,
    batch_tokens: int,
    device: torch.device,
    too_large: Callable[[int], str],
) -> None:
    """Run batches of indices, longest first, each at most `batch_tokens` positions in all.

    If memory is not enough for a batch, it and those after it are halved, down to single indices.

    Args:
        run: does a batch; what it has done of one that fails is done again.
        too_large: what to say if an index needs more memory than there is, even alone.

    Raises:
        TrainingError: with that.
    """
    order = np.argsort(-lengths, kind="stable").tolist()
    while order:
        longest = int(lengths[order[0]])
        batch = order[: max(1, batch_tokens // longest)]
        if has_run(run, batch):
            order = order[len(batch) :]
            continue
        free_memory(device)
        if len(batch) == 1:
            raise TrainingError(f"out of memory: {too_large(batch[0])}")
        batch_tokens = len(batch) // 2 * longest


def has_run(run: Callable[[list[int]], None], batch: list[int]) -> bool:
    """Run a batch, and say whether memory was enough for it."""
    try:
        run(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[None]:
    """Where the model computes in a precision; None is that of its weights."""
    if precision is None or precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, precision)


def extend(logits: Logits, live: Tensor, rules: Rules, n: int) -> Best:
    """`best_extensions`, in a compiled loop where there is one."""
    if not logits.are_compiled():
        return best_extensions(logits.dense(), live, rules, n)
    return Best(*logits.best_extensions(live, rules.banned_ids, rules.must_end, rules.eos_id, n))


def _beam_search(
    step: Step[State],
    start: State,
    max_lengths: Tensor,
    options: SearchOptions,
    pad_id: int,
    bos_id: int,
    eos_id: int,
) -> list[list[Hypothesis]]:
    return beam_search(
        step,
        start,
        beam_size=options.beam_size,
        n_best=options.n_best,
        max_lengths=max_lengths,
        min_length=options.min_length,
        alpha=options.length_penalty,
        bos_id=bos_id,
        eos_id=eos_id,
        forbidden_ids=(pad_id, bos_id),
        extend=extend,
    )
