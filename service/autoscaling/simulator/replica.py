"""One replica in virtual time: the continuous batching of `service.engine`, with runs of equal steps taken at once.

What the engine's scheduler decides depends only on numbers of tokens, and it decides anew only when a sequence arrives,
completes its prompt or ends. Between those instants a step differs from the one before it only in that each context is
one token longer, so that the time of k steps is a quadratic in k. This replica keeps the numbers, takes those k steps
in one, and is otherwise the scheduler: oldest first, the budget shared by running and waiting sequences, all or nothing
admission with one block reserved for each running sequence, preemption of the youngest by recompute. The tests run both
and compare every first and last token.

Not modelled: two sequences that share blocks pay for both copies, and a waiting sequence does not wait for a prefix
that another is computing.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque

from service.autoscaling.signals import EngineLimits
from service.autoscaling.simulator.sequence import SimulatedSequence
from service.autoscaling.simulator.totals import ReplicaTotals
from service.autoscaling.simulator.workload import PREFIX_BLOCK_TOKENS, SimulatedRequest
from service.engine.synthetic import StepCost


class SimulatedReplica:
    """Owns its sequences. `now` is the end of its last step: where the next one starts, if there is work.

    What has waited for more than `max_wait_s` without being begun is turned away.
    """

    def __init__(self, cost: StepCost, limits: EngineLimits, now: float, max_wait_s: float = math.inf) -> None:
        self.now = now
        self.totals = ReplicaTotals()
        self._cost = cost
        self._limits = limits
        self._max_wait_s = max_wait_s
        self._num_blocks = limits.kv_tokens // limits.block_size
        self._step = 0
        self._waiting: deque[SimulatedSequence] = deque()
        self._running: dict[int, SimulatedSequence] = {}  # by id(), oldest first; all but the last one decode
        self._ends: list[tuple[int, int]] = []  # heap of (step that brings the last token, id of the sequence)
        self._prefilling: SimulatedSequence | None = None  # the youngest running, while its prompt is not computed
        self._num_decoding = 0
        self._num_computed = 0  # tokens in the cache, of the decoding sequences
        self._num_completing = 0  # tokens of sequences whose prompt completes in the step being made
        self._num_prefill_left = 0  # prompt tokens that nobody computed yet
        self._prefixes: OrderedDict[int, None] = OrderedDict()  # ids of cached blocks, least recently used first

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_ongoing(self) -> int:
        return len(self._running) + len(self._waiting)

    @property
    def num_prefill_left(self) -> int:
        """Prompt tokens not computed yet, prefix hits not foreseen."""
        return self._num_prefill_left

    @property
    def kv_usage(self) -> float:
        return min(1.0, self._num_known_tokens() / (self._num_blocks * self._limits.block_size))

    def num_hit_tokens(self, request: SimulatedRequest) -> int:
        """Leading prompt tokens whose K and V are cached here."""
        num_hits = 0
        for prefix_id in request.prefix_ids:
            if prefix_id not in self._prefixes:
                break
            num_hits += PREFIX_BLOCK_TOKENS
        whole_blocks = (request.num_prompt_tokens - 1) // self._limits.block_size * self._limits.block_size
        return min(num_hits, whole_blocks)

    def add(self, sequence: SimulatedSequence, at: float) -> None:
        """Accept it at an instant not before any step that has run (`run_until(at)` first)."""
        if not self.num_ongoing:
            self.now = max(self.now, at)
        self._waiting.append(sequence)
        self._num_prefill_left += sequence.num_uncomputed
        self.totals.num_requests += 1
        self.totals.num_prompt_tokens += sequence.request.num_prompt_tokens

    def take_all(self) -> list[SimulatedSequence]:
        """What a crash leaves behind: every unfinished sequence, oldest first."""
        left = [*self._running.values(), *self._waiting]
        self._running.clear()
        self._waiting.clear()
        return left

    def run_until(self, at: float) -> None:
        """Run every step that starts before `at`."""
        while self.now < at:
            self._turn_away()
            if not self._running and not self._waiting:
                return
            num_steps = self._num_steady_steps()
            if num_steps > 0:
                self._decode_steps(at, num_steps)
            else:
                self._single_step()

    def _turn_away(self) -> None:
        """Refuse what has waited too long. What was begun and preempted stays."""
        while self._waiting:
            oldest = self._waiting[0]
            if oldest.first_token_at is not None or self.now - oldest.request.arrival_at <= self._max_wait_s:
                return
            self._num_prefill_left -= self._waiting.popleft().num_uncomputed
            self.totals.turned_away.append(oldest.request)

    def _num_steady_steps(self) -> int:
        """Steps in which the same sequences decode and nothing else can happen."""
        if self._prefilling is not None or (self._can_admit() and self._has_budget()):
            return 0
        return min(self._ends[0][0] - self._step, self._num_safe_steps())

    def _has_budget(self) -> bool:
        return self._num_decoding < self._limits.max_num_batched_tokens

    def _num_known_tokens(self) -> int:
        prefilling = self._prefilling
        num_prefilling = 0 if prefilling is None else prefilling.num_tokens
        return self._num_computed + self._num_decoding + self._num_completing + num_prefilling

    def _num_used_blocks(self) -> int:
        """Exact, and slow: only asked where the bound on it does not decide."""
        size, step = self._limits.block_size, self._step
        return sum(
            -(-(s.num_tokens + (step - s.since_step if s.since_step >= 0 else 0)) // size)
            for s in self._running.values()
        )

    def _fits(self, num_blocks: int) -> bool:
        """Whether so many more blocks are available."""
        num_at_most = self._num_known_tokens() // self._limits.block_size + len(self._running) + 1
        return num_at_most + num_blocks <= self._num_blocks or self._num_used_blocks() + num_blocks <= self._num_blocks

    def _can_admit(self) -> bool:
        """Whether sequences and blocks are left for the oldest waiting sequence."""
        limits = self._limits
        return (
            bool(self._waiting)
            and len(self._running) < limits.max_num_seqs
            and self._fits(-(-self._waiting[0].num_tokens // limits.block_size) + len(self._running))
        )

    def _num_safe_steps(self) -> int:
        """Steps that surely need no more blocks than there are (each sequence wastes less than one)."""
        b, size = self._num_decoding, self._limits.block_size
        num_left = (self._num_blocks - len(self._running)) * size - self._num_known_tokens()
        return 1 + num_left // b if b else 1

    def _decode_steps(self, at: float, k: int) -> None:
        """Take, in one, at most `k` steps: those that start before `at`."""
        cost, b, computed = self._cost, self._num_decoding, self._num_computed
        # Step j of k (from 1) attends to computed + j·b tokens, so k steps take k·linear + k²·square seconds.
        square = 0.5 * cost.per_context_token_s * b
        linear = cost.base_s + cost.per_sequence_s * b + cost.per_context_token_s * computed + square
        left_s = at - self.now
        if (k - 1) * (linear + (k - 1) * square) >= left_s:
            root = (
                (math.sqrt(linear * linear + 4 * square * left_s) - linear) / (2 * square)
                if square
                else left_s / linear
            )
            k = max(1, min(k, math.ceil(root)))
        self._advance(k, k * (linear + k * square), b, 0, computed * k + b * k * (k + 1) // 2)
        self._num_computed = computed + k * b
        self._end_due()

    def _advance(self, k: int, duration_s: float, num_sequences: int, num_prefill: int, num_context: int) -> None:
        self._step += k
        self.now += duration_s
        totals = self.totals
        totals.num_steps += k
        totals.busy_s += duration_s
        totals.num_sequences += k * num_sequences
        totals.num_prefill_tokens += num_prefill
        totals.num_context_tokens += num_context

    def _single_step(self) -> None:
        """One step as the scheduler makes it, with chunks of prompts."""
        if self._num_safe_steps() < 1:
            self._preempt_for_blocks()
        b, budget = self._num_decoding, self._limits.max_num_batched_tokens - self._num_decoding
        num_sequences, num_prefill, num_context = b, 0, self._num_computed + b
        completed: list[SimulatedSequence] = []
        while budget > 0 and (self._prefilling is not None or self._can_admit()):
            sequence = self._prefilling or self._admit()
            chunk = min(sequence.num_uncomputed, budget)
            sequence.num_uncomputed -= chunk
            self._num_prefill_left -= chunk
            budget -= chunk
            num_sequences += 1
            num_prefill += chunk - 1
            num_context += sequence.num_tokens - sequence.num_uncomputed
            if sequence.num_uncomputed == 0:
                self._prefilling = None
                self._num_completing += sequence.num_tokens
                completed.append(sequence)
        step_s = self._cost.of(num_sequences, num_prefill, num_context)
        self._advance(1, step_s, num_sequences, num_prefill, num_context)
        self._num_computed += b
        self._num_completing = 0
        for sequence in completed:
            self._first_token(sequence)
        self._end_due()

    def _admit(self) -> SimulatedSequence:
        sequence = self._waiting.popleft()
        self._running[id(sequence)] = sequence
        self._prefilling = sequence
        if sequence.request.prefix_ids:
            num_hits = self.num_hit_tokens(sequence.request)
            sequence.num_uncomputed -= num_hits
            self._num_prefill_left -= num_hits
            if sequence.first_token_at is None:
                sequence.num_hit_tokens = num_hits
                self.totals.num_hit_tokens += num_hits
        return sequence

    def _first_token(self, sequence: SimulatedSequence) -> None:
        """The prompt (or, after a preemption, all of it that was known) is computed: decode from here on."""
        if sequence.first_token_at is None:
            sequence.first_token_at = self.now
        sequence.num_output_left -= 1
        sequence.num_tokens += 1
        sequence.since_step = self._step
        sequence.end_step = self._step + sequence.num_output_left
        self._num_decoding += 1
        self._num_computed += sequence.num_tokens - 1
        heapq.heappush(self._ends, (sequence.end_step, id(sequence)))
        if sequence.request.prefix_ids:
            self._cache(sequence.request)

    def _cache(self, request: SimulatedRequest) -> None:
        prefixes = self._prefixes
        for prefix_id in request.prefix_ids[: request.num_prompt_tokens // PREFIX_BLOCK_TOKENS]:
            prefixes[prefix_id] = None
            prefixes.move_to_end(prefix_id)
        while len(prefixes) * PREFIX_BLOCK_TOKENS > self._limits.kv_tokens:
            prefixes.popitem(last=False)

    def _end_due(self) -> None:
        """Let go of the sequences whose last token this step brought."""
        while self._ends and self._ends[0][0] <= self._step:
            sequence = self._running.pop(heapq.heappop(self._ends)[1])
            sequence.last_token_at = self.now
            self._stop_decoding(sequence)
            self.totals.finished.append(sequence)

    def _stop_decoding(self, sequence: SimulatedSequence) -> None:
        num_generated = self._step - sequence.since_step
        sequence.num_tokens += num_generated
        sequence.num_output_left -= num_generated
        sequence.since_step = -1
        self._num_decoding -= 1
        self._num_computed -= sequence.num_tokens - 1

    def _preempt_for_blocks(self) -> None:
        """Send the youngest back to waiting until the known tokens of all others fit."""
        while self._num_used_blocks() > self._num_blocks:
            _, youngest = self._running.popitem()
            if youngest is self._prefilling:
                self._prefilling = None
                self._num_prefill_left -= youngest.num_uncomputed
            else:
                self._stop_decoding(youngest)
                self._ends = [entry for entry in self._ends if entry[1] != id(youngest)]
                heapq.heapify(self._ends)
            youngest.num_uncomputed = youngest.num_tokens
            self._num_prefill_left += youngest.num_uncomputed
            self._waiting.appendleft(youngest)
            self.totals.num_preemptions += 1
