"""Decode many prompts at once: rows of one static cache, each taken by a new prompt as soon as it is free.

Method: a prompt is run once and its keys and values are given to all completions of its group; then every step takes
one token of all rows, whatever their ages. A finished row leaves at once: a waiting prompt takes its place, or the
last row moves there, so that rows without work are never computed. As many rows as `rows` and `memory` allow are
decoded together; should memory run out all the same, the rows are halved and what was not finished is done again.
On CUDA steps are replayed as graphs (graphs.py).

Every completion has its own random numbers, drawn from (seed, key, number of the completion): what it says does not
depend on what it shares a batch with, except through the rounding of matrix products.
Not covered: models other than `danlu.models.decoder.supports` says, beams, several devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from danlu import display
from danlu.errors import DanluError
from danlu.generate import Sampling, native
from danlu.generate.forward import Cache, Shared, cache_of, prefill, shared_of, step
from danlu.generate.graphs import graphs_of
from danlu.generate.memory import cache_budget, cache_bytes, ran_out, row_bytes
from danlu.generate.pick import pick
from danlu.generate.weights import Weights

PREFILL = 4096  # prompt tokens run together at most, padding included
GROUPS = 4  # prompts kept apart at most, times those that fill the rows: groups thin out as rows end
APART = 4 << 20  # bytes of prompts that a layer reads in a step, from which they are kept apart
ADMIT = 0.125  # prompts that wait are let in when this share of the rows is free
STRETCH = 1.5  # the longest row of a cache is at most so many times the shortest

Ended = Callable[[list[int]], bool]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One completion: ids (end token included when `stopped` by one) and their log-probs as `pick` defines them."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


@dataclass(frozen=True, slots=True)
class Job:
    """Completions to be written of one prompt: `samples` are their numbers."""

    prompt: int
    ids: list[int]
    samples: list[int]


@dataclass(slots=True, eq=False)
class Row:
    """A completion that is being written. `start`: tokens of its prompt; `group`, `member`: see Shared."""

    prompt: int
    sample: int
    start: int
    draws: list[float]
    group: int = 0
    member: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False


def draws(seed: int, key: str, sample: int, steps: int) -> list[float]:
    """The uniform numbers of one completion, by Philox from a hash of what it is."""
    word = hashlib.blake2b(f"{seed}|{key}|{sample}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(word, "big"))).random(steps, dtype=np.float32).tolist()


class Batch:
    """Rows of one cache that are decoded together; the first ones are alive.

    shape: (rows, prompt tokens, completion tokens) at most. members: rows of a prompt at most; with more than one the
    prompt is kept once, where that is possible. ended: whether a completion ends here without an end token.
    """

    def __init__(
        self,
        w: Weights,
        shape: tuple[int, int, int],
        sampling: Sampling,
        end_ids: Sequence[int],
        members: int = 1,
        ended: Ended | None = None,
    ) -> None:
        self.w, self.sampling, self.capacity = w, sampling, shape[0]
        self.ends, self.ended = set(end_ids), ended
        self.rows: list[Row] = []
        self.alive: list[list[Row]] = []  # rows of each group, where prompts are kept apart
        groups = GROUPS * -(-shape[0] // members) if _apart_pays(w, shape, members) else 0
        self.cache: Cache = cache_of(w, *shape, groups, members)
        self.tokens, self.positions, self.starts = (
            torch.zeros(shape[0], dtype=torch.long, device=w.device) for _ in range(3)
        )
        self.graphs = graphs_of(w, self.cache, self.tokens, self.positions)
        self.steps = native.Steps(w) if native.serves(w) else None
        self.shared: Shared | None = None
        self.prompts: tuple[Tensor, Tensor] | None = None  # the same for `steps`: group of each row, their lengths
        self.seen: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros(shape[0], w.vocabulary, dtype=torch.bool, device=w.device)

    @property
    def shares(self) -> bool:
        return self.cache.shared is not None

    def room(self) -> tuple[int, int]:
        """(rows, prompts) that can be let in."""
        free = self.capacity - len(self.rows)
        return free, len(self.cache.shared[0]) - len(self.alive) if self.cache.shared is not None else free

    @torch.inference_mode()
    def admit(self, prompts: Sequence[list[int]], groups: Sequence[list[Row]]) -> list[Row]:
        """Run prompts, whose groups of rows are equally large; the rows that ended with their first token."""
        first, each, place = len(self.rows), len(groups[0]), self.w.device
        new = [row for group in groups for row in group]
        if self.shares:
            for group in groups:
                for member, row in enumerate(group):
                    row.group, row.member = len(self.alive), member
                self.alive.append(list(group))
            hidden = prefill(self.w, self.cache, list(prompts), len(self.alive) - len(groups))
        else:
            hidden = prefill(self.w, replace(self.cache, members=each), list(prompts), first)
        self.rows += new
        starts = torch.tensor([row.start for row in new], device=place)
        self.positions[first : len(self.rows)] = starts - 1
        self.starts[first : len(self.rows)] = starts
        self._number()
        if self.seen is not None:
            for number, prompt in enumerate(prompts):
                own = self.seen[first + number * each : first + (number + 1) * each]
                own[:] = False
                own[:, torch.tensor(prompt, device=place)] = True
        return self._take(first, self.w.head(hidden).repeat_interleave(each, 0))

    @torch.inference_mode()
    def advance(self) -> list[Row]:
        """One token more for every row; the rows that ended with it."""
        logits = None
        if self.graphs:
            logits = self.graphs.logits(len(self.rows), max(self._written(row) for row in self.rows) + 1)
        return self._take(0, self.w.head(self._hidden()) if logits is None else logits)

    def _hidden(self) -> Tensor:
        """Take the newest token of every row in; the hidden states [rows, hidden]."""
        count = len(self.rows)
        tokens, positions = self.tokens[:count], self.positions[:count]
        places = positions - self.starts[:count] if self.shares else positions
        if self.steps is not None:
            longest = max(row.start + len(row.tokens) for row in self.rows)
            return self.steps.hidden(self.cache, tokens, positions, places, longest, self.prompts)
        written = [self._written(row) for row in self.rows]
        length, masked = max(written) + 1, min(written) < max(written)
        return step(self.w, self.cache, tokens, positions, places, length, masked, self.shared)

    def _written(self, row: Row) -> int:
        """Tokens that the row has in `cache.data`: all but the last one."""
        return len(row.tokens) - 1 + (0 if self.shares else row.start)

    def _number(self) -> None:
        """Write down which prompt each row shares."""
        if self.shares and self.rows:
            members = self.cache.members
            slots = [row.group * members + row.member for row in self.rows]
            lengths = [group[0].start for group in self.alive]
            if self.steps is not None:
                self.prompts = (torch.tensor([row.group for row in self.rows]), torch.tensor(lengths))
            else:
                self.shared = shared_of(self.w, slots, members, lengths)

    def _take(self, first: int, logits: Tensor) -> list[Row]:
        """Pick the next token of the rows from `first` on; those that ended leave and are returned."""
        new = self.rows[first:]
        numbers = None
        if self.sampling.temperature > 0:
            numbers = torch.tensor([row.draws[len(row.tokens)] for row in new], device=self.w.device)
        seen = self.seen[first : len(self.rows)] if self.seen is not None else None
        chosen, logprobs = pick(logits, self.sampling, numbers, seen)
        self.tokens[first : len(self.rows)] = chosen
        self.positions[first : len(self.rows)] += 1
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
        over = []
        for place, (token, logprob) in enumerate(zip(chosen.tolist(), logprobs.tolist(), strict=True), first):
            row = self.rows[place]
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.stopped = token in self.ends or (self.ended is not None and self.ended(row.tokens))
            if row.stopped or len(row.tokens) == self.sampling.max_tokens:
                over.append(place)
        return self._leave(over) if over else []

    def _leave(self, over: list[int]) -> list[Row]:
        """Take rows out; the last ones move into the gaps."""
        found = [self.rows[place] for place in over]
        gaps, movers = _moves(over, len(self.rows))
        for gap, mover in zip(gaps, movers, strict=True):
            used = self._written(self.rows[mover])
            self.cache.data[:, gap, :, :used] = self.cache.data[:, mover, :, :used]
            for held in (self.tokens, self.positions, self.starts, self.seen):
                if held is not None:
                    held[gap] = held[mover]
            self.rows[gap] = self.rows[mover]
        del self.rows[len(self.rows) - len(over) :]
        if self.shares:
            self._leave_groups(found)
        self._number()
        return found

    def _leave_groups(self, found: list[Row]) -> None:
        """Take prompts out that have no row any more."""
        assert self.cache.shared is not None
        for row in found:
            self.alive[row.group].remove(row)
        over = [i for i, group in enumerate(self.alive) if not group]
        gaps, movers = _moves(over, len(self.alive))
        for gap, mover in zip(gaps, movers, strict=True):
            used = self.alive[mover][0].start
            self.cache.shared[:, gap, :, :used] = self.cache.shared[:, mover, :, :used]
            self.alive[gap] = self.alive[mover]
            for row in self.alive[gap]:
                row.group = gap
        del self.alive[len(self.alive) - len(over) :]


def _apart_pays(w: Weights, shape: tuple[int, int, int], members: int) -> bool:
    """Whether to keep prompts apart: on a CPU, with native steps always; else where rows would read much of one prompt,
    as joining two attentions has a price."""
    read = cache_bytes(1, w.kv_heads, w.head_dim, shape[0], shape[1], w.dtype.itemsize)
    return w.device.type == "cpu" and members > 1 and (native.serves(w) or read >= APART)


def _moves(over: list[int], count: int) -> tuple[list[int], list[int]]:
    """(gaps, who moves there) so that what is left of `count` places, without those that are over, comes first."""
    left, gone = count - len(over), set(over)
    return [place for place in over if place < left], [place for place in range(left, count) if place not in gone]


def decode(
    w: Weights,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    end_ids: Sequence[int],
    keys: Sequence[str] | None = None,
    rows: int = 256,
    memory: int | None = None,
    ended: Ended | None = None,
) -> Iterator[tuple[int, list[Decoded]]]:
    """Yield (index of the prompt, its `sampling.samples` completions) as they finish.

    prompts: token ids, none empty. keys: one string a prompt that, with the seed, fixes its random numbers (default:
    its place in the list). rows: completions decoded together at most. memory: bytes that the cache may take
    (default: a share of what is free). DanluError when not even one row fits.
    """
    keys = keys or [str(i) for i in range(len(prompts))]
    found: list[dict[int, Decoded]] = [{} for _ in prompts]
    todo = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    while todo:
        length = STRETCH * (len(prompts[todo[0]]) + sampling.max_tokens)
        part = [i for i in todo if len(prompts[i]) + sampling.max_tokens <= length]
        longest = len(prompts[part[-1]])
        capacity = min(rows, _fitting(w, longest, sampling, memory), len(part) * sampling.samples)
        while part:
            try:
                for row in _decoded(w, prompts, part, found, (capacity, longest), sampling, end_ids, keys, ended):
                    own = found[row.prompt]
                    own[row.sample] = Decoded(row.tokens, row.logprobs, row.stopped)
                    if len(own) == sampling.samples:
                        todo.remove(row.prompt)
                        yield row.prompt, [own[sample] for sample in range(sampling.samples)]
                part = []
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                if capacity == 1:
                    raise _too_long(longest + sampling.max_tokens) from error
            if part:
                capacity //= 2
                display.warn(f"memory ran out while decoding: going on with {capacity} completions together")
                if w.device.type == "cuda":
                    torch.cuda.empty_cache()
                part = [i for i in part if len(found[i]) < sampling.samples]


def _fitting(w: Weights, prompt: int, sampling: Sampling, memory: int | None) -> int:
    """How many rows fit."""
    allowed = cache_budget(w.device) if memory is None else memory
    length = prompt + sampling.max_tokens
    each = row_bytes(len(w.layers), w.kv_heads, w.head_dim, length, w.vocabulary, w.dtype.itemsize)
    if memory is not None and allowed < each:
        raise _too_long(length)
    return max(1, allowed // each)


def _too_long(length: int) -> DanluError:
    return DanluError(f"there is no memory to decode {length} tokens", "lower max_tokens, or free memory")


def _decoded(
    w: Weights,
    prompts: Sequence[Sequence[int]],
    part: list[int],
    found: list[dict[int, Decoded]],
    shape: tuple[int, int],
    sampling: Sampling,
    end_ids: Sequence[int],
    keys: Sequence[str],
    ended: Ended | None,
) -> Iterator[Row]:
    """The rows of some prompts as they end, those that `found` holds left out; shape: (rows, longest prompt)."""
    capacity = shape[0]
    waiting = [job for i in part for job in _jobs(i, prompts[i], found[i], sampling.samples, capacity)][::-1]
    members = min(capacity, sampling.samples)
    batch = Batch(w, (*shape, sampling.max_tokens), sampling, end_ids, members, ended)
    while waiting or batch.rows:
        while waiting and batch.room()[0] >= max(len(waiting[-1].samples), ADMIT * capacity) and batch.room()[1]:
            jobs = [waiting.pop()]
            while waiting and _together(waiting[-1], jobs, batch.room()):
                jobs.append(waiting.pop())
            rows = [[_row(job, sample, sampling, keys) for sample in job.samples] for job in jobs]
            yield from batch.admit([job.ids for job in jobs], rows)
        if batch.rows:
            yield from batch.advance()


def _jobs(prompt: int, ids: Sequence[int], found: dict[int, Decoded], samples: int, capacity: int) -> list[Job]:
    missing = [sample for sample in range(samples) if sample not in found]
    return [Job(prompt, list(ids), missing[at : at + capacity]) for at in range(0, len(missing), capacity)]


def _together(job: Job, jobs: list[Job], room: tuple[int, int]) -> bool:
    """Whether a job can be let in with others: groups of one size, in the free rows, not too many tokens."""
    count, size = len(jobs) + 1, len(jobs[0].samples)
    tokens = count * max(len(one.ids) for one in (*jobs, job))
    return len(job.samples) == size and count * size <= room[0] and count <= room[1] and tokens <= PREFILL


def _row(job: Job, sample: int, sampling: Sampling, keys: Sequence[str]) -> Row:
    numbers = draws(sampling.seed, keys[job.prompt], sample, sampling.max_tokens) if sampling.temperature > 0 else []
    return Row(job.prompt, sample, len(job.ids), numbers)


def one_by_one(
    w: Weights,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    end_ids: Sequence[int],
    key: str = "0",
    ended: Ended | None = None,
) -> Iterator[int]:
    """The tokens of the first completion of one prompt, each as soon as it is picked; its end token included."""
    job = Job(0, list(prompt), [0])
    row = _row(job, 0, sampling, [key])
    batch = Batch(w, (1, len(job.ids), sampling.max_tokens), sampling, end_ids, ended=ended)
    over = batch.admit([job.ids], [[row]])
    yield row.tokens[-1]
    while not over:
        over = batch.advance()
        yield row.tokens[-1]
