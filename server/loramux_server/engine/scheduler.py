"""What runs next: continuous batching over requests of many adapters.

Knows nothing of tensors or clocks. Decode goes before prefill; prompts run in chunks; a request
whose adapter is not resident lets others pass, but only a bounded number of times; when blocks run
out the request that started last starts over later. Tenants take turns by what they were served
(`fair_queue.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from loramux_server.engine.adapter_source import AdapterSource
from loramux_server.engine.block_manager import BlockManager
from loramux_server.engine.ends import Ends
from loramux_server.engine.fair_queue import FairQueue
from loramux_server.engine.messages import Finish
from loramux_server.engine.plan import Chunk, Plan
from loramux_server.engine.prefix import name_blocks
from loramux_server.engine.request import Request
from loramux_server.engine.state_keeper import StateKeeper, StateUse


class Adapters(Protocol):
    """What the scheduler needs from the adapter cache."""

    def want(self, source: AdapterSource) -> None:
        """Note that one more request waits for `source`."""

    def unwant(self, digest: str) -> None:
        """Note that one request waits no longer."""

    def acquire(self, digest: str) -> bool:
        """Turn a wait into a lease if the adapter is resident."""

    def release(self, digest: str) -> None:
        """Give back a lease."""


class Scheduler:
    """Owns the two queues, `waiting` and `running`, and who is in neither, `paused`."""

    def __init__(
        self,
        *,
        blocks: BlockManager,
        adapters: Adapters,
        max_running: int,
        max_batch_tokens: int,
        max_bypassed: int,
        context_length: int,
        eos_token_ids: frozenset[int],
        shares_prefixes: bool = True,
        states: StateKeeper | None = None,
    ) -> None:
        self.waiting = FairQueue()
        self.running: list[Request] = []
        self.paused: set[Request] = set()
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        """Tokens that requests brought when they started."""
        self.num_shared_tokens = 0
        """Those of them whose blocks were there already."""
        self._shares_prefixes = shares_prefixes
        self._blocks = blocks
        self._states = states
        """None where the model has no recurrent layers."""
        self._adapters = adapters
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._max_bypassed = max_bypassed
        self.ends = Ends(context_length, eos_token_ids)
        """Knows when requests end."""

    @property
    def num_used_blocks(self) -> int:
        """KV blocks that running requests hold."""
        return self._blocks.num_blocks - self._blocks.num_free

    @property
    def num_queued(self) -> int:
        """Waiting requests for which the next step has no place among the running ones."""
        return max(0, len(self.waiting) + len(self.running) - self._max_running)

    def num_to_compute(self, request: Request) -> int:
        """Return how many tokens of a request that has not started have to be computed."""
        known = self._blocks.num_known(self._prefix(request))
        return request.num_tokens - max(request.num_fillable, known * self._blocks.block_size)

    def num_waiting_tokens(self) -> int:
        """Return how many tokens the queue has, of which `num_to_compute_before` may be fewer."""
        return sum(request.num_tokens for request in self.waiting)

    def num_to_compute_before(self, tenant: str) -> int:
        """Return how many tokens are computed before a request of `tenant` that comes now.

        What requests share counts once.
        """
        names: set[bytes] = set()
        num_tokens, size = 0, self._blocks.block_size
        for request in self.waiting.before(tenant):
            if request.num_bypassed:  # it waits for its adapter, and others go before it
                continue
            num_filled = -(-request.num_fillable // size)
            found = self._prefix(request)[num_filled:]
            names.update(found)
            num_tokens += max(0, request.num_tokens - (num_filled + len(found)) * size)
        return num_tokens + size * sum(not self._blocks.num_known([name]) for name in names)

    def add(self, request: Request) -> None:
        """Put `request` in its tenant's line; see `FairQueue.append`."""
        self._want(request)
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Take `request` out wherever it is and free what it holds."""
        self.pause(request)
        if request in self.paused:
            self.paused.remove(request)
            self.waiting.ended(request)

    def pause(self, request: Request) -> None:
        """Take `request` out of its queue and free what it holds; its tokens are kept."""
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)
            if request.digest:
                self._adapters.unwant(request.digest)
        else:
            return
        self.paused.add(request)

    def resume(self, request: Request) -> None:
        """Let a paused `request` wait again; its tenant pays for what is computed once more."""
        if request in self.paused:
            self.paused.remove(request)
            request.owes_prompt = True
            self._want(request)
            self.waiting.come_back(request)

    def plan(self, max_prompt_tokens: int | None = None) -> Plan:
        """Return what the next step computes; blocks and leases for it are taken.

        Args:
            max_prompt_tokens: Most tokens of prompts in a step in which others decode.
        """
        chunks: list[Chunk] = []
        preemptions = self.num_preemptions
        budget = self._plan_decode(chunks, self._max_batch_tokens)
        if chunks and max_prompt_tokens is not None:
            budget = min(budget, max_prompt_tokens)
        for request in self.running:
            if request.num_uncomputed > 1 and not request.is_held:
                budget -= self._add_chunk(chunks, request, budget)
        # Whoever just lost its blocks must not take them back in the same step.
        started = self._admit(chunks, budget) if preemptions == self.num_preemptions else []
        return Plan(chunks, started, self._whose_turn())

    def num_left(self, plan: Plan) -> int:
        """Return how many tokens more the step of `plan` may have."""
        return self._max_batch_tokens - plan.num_tokens

    def with_drafts(self, plan: Plan, drafts: Mapping[Request, Sequence[int]]) -> Plan:
        """Return `plan` with each of `drafts` behind its request's tokens, if blocks are left."""
        if not drafts:
            return plan
        chunks = []
        for chunk in plan.chunks:
            draft = drafts.get(chunk.request, ())
            table = chunk.request.blocks
            if draft and self._blocks.grow_spare(table, chunk.end + len(draft)):
                chunk = replace(chunk, draft=tuple(draft))
            chunks.append(chunk)
        return replace(plan, chunks=chunks)

    def follow(self, plan: Plan) -> Plan | None:
        """Return the step after `plan`, which still runs; None if its end has to come first.

        Each request goes on with a token that nobody knows yet, and blocks for it are taken. If
        that token ends the request, what the next step makes of it is dropped.
        """
        if len(self.running) < self._max_running and not all(r.is_held for r in self.waiting):
            return None
        running = set(self.running)
        going_on = [chunk for chunk in plan.chunks if chunk.request in running]
        if len(going_on) < len(running) or not all(chunk.samples for chunk in going_on):
            return None
        going_on = [c for c in going_on if not self.ends.has_length(c.request, 1)]
        if not all(self._blocks.grow(c.request.blocks, c.end + 1) for c in going_on):
            return None
        chunks = [
            Chunk(
                chunk.request,
                chunk.end,
                1,
                is_ahead=True,
                state=self._use_state(chunk.request, chunk.end, 1, is_ahead=True),
            )
            for chunk in going_on
        ]
        return Plan(chunks, [], self._whose_turn()) if chunks else None

    def commit(
        self, plan: Plan, tokens: Sequence[Sequence[int]]
    ) -> list[tuple[Request, int, Finish | None]]:
        """Take in the result of `plan`, and free what finished; who ended meanwhile is passed over.

        Args:
            plan: What was run.
            tokens: The new tokens of each chunk that samples, in order: those of its draft that
                hold, and one more. No token where it is put off, and the last token of the chunk is
                computed again.

        Returns:
            (request, new token, why it ended or None) for each of `tokens` that counts.
        """
        results: list[tuple[Request, int, Finish | None]] = []
        new = iter(tokens)
        running = set(self.running)
        for chunk in plan.chunks:
            request = chunk.request
            samples = chunk.samples
            chosen = next(new) if samples else ()
            if request not in running:
                self._commit_state(chunk, is_running=False)
                continue
            taken = self._take(request, chosen)
            # The last token that was chosen is still to be computed.
            request.num_computed = chunk.end + len(taken) - samples
            self._name_blocks(request)
            self._commit_state(chunk, is_running=True)
            if samples and not taken and self._states:
                # What is known after the token that is computed again is not known before it.
                self._preempt(request)
                continue
            if chunk.draft:  # others need what it would have taken
                self._blocks.shrink(request.blocks, request.num_tokens)
            if taken and taken[-1][2]:
                self.remove(request)
            results += taken
        return results

    def check(self) -> None:
        """Assert that blocks are held by running requests only."""
        self._blocks.check([request.blocks for request in self.running])
        if self._states:
            self._states.check(self.running)
        idle = [*self.waiting, *self.paused]
        assert not any(request.blocks for request in idle), "one that does not run holds blocks"
        enough = (r.digest for r in self.waiting if self._was_passed_enough(r))
        assert next(enough, None) == self._whose_turn(), "one was passed more often than before it"

    def _take(
        self, request: Request, tokens: Sequence[int]
    ) -> list[tuple[Request, int, Finish | None]]:
        """Append `tokens` up to the one with which `request` ends, and return what was."""
        taken: list[tuple[Request, int, Finish | None]] = []
        for token in tokens:
            request.output.append(token)
            self.waiting.charge_output(request)
            finish = self.ends.reason(request, token)
            taken.append((request, token, finish))
            if finish:
                break
        return taken

    def _plan_decode(self, chunks: list[Chunk], budget: int) -> int:
        # A snapshot: preemption takes requests from the end of the list while this goes on.
        for request in list(self.running):
            if request.num_uncomputed != 1 or request.is_held:
                continue
            if not budget or request not in self.running:
                continue
            while not self._blocks.grow(request.blocks, request.num_tokens):
                victim = self.running[-1]
                self._preempt(victim)
                if victim is request:
                    break
            else:
                budget -= self._add_chunk(chunks, request, budget)
        return budget

    def _add_chunk(self, chunks: list[Chunk], request: Request, budget: int) -> int:
        done = request.num_computed
        start = max(done, request.num_fillable) if done < request.num_virtual else done
        num_tokens = min(request.num_tokens - start, budget)
        if num_tokens:
            state = self._use_state(request, start, num_tokens)
            chunks.append(Chunk(request, start, num_tokens, num_filled=start - done, state=state))
        return num_tokens

    def _use_state(
        self, request: Request, start: int, num_tokens: int, *, is_ahead: bool = False
    ) -> StateUse | None:
        if not self._states:
            return None
        return self._states.use(request, start, start + num_tokens, is_ahead=is_ahead)

    def _commit_state(self, chunk: Chunk, *, is_running: bool) -> None:
        if self._states and chunk.state:
            self._states.commit(chunk.request, chunk.state, is_running=is_running)

    def _admit(self, chunks: list[Chunk], budget: int) -> list[Request]:
        started: list[Request] = []
        passed: list[Request] = []
        # Whether one of `passed` let enough others pass: then only base requests start, the
        # leases run out, and its adapter fits.
        is_draining = False
        if not budget or len(self.running) >= self._max_running:
            return started
        for request in self.waiting.turns():
            if request.is_held:
                continue
            names = self._prefix(request)
            if not self._blocks.can_begin(names, request.num_tokens):
                break
            if self._states and not self._states.can_begin:
                break
            if request.digest and (is_draining or not self._adapters.acquire(request.digest)):
                passed.append(request)
                is_draining = is_draining or self._was_passed_enough(request)
                continue
            request.blocks, num_shared = self._blocks.begin(names, request.num_tokens)
            request.num_named = num_shared
            request.num_computed = num_shared * self._blocks.block_size
            if self._states:
                num_blocks = self._blocks.num_known(self._names(request))
                self._states.begin(request, names, num_blocks)
            self.waiting.remove(request)
            if not request.goes_on:
                self.num_prompt_tokens += request.num_tokens
                self.num_shared_tokens += request.num_computed
            self.running.append(request)
            budget -= self._add_chunk(chunks, request, budget)
            if request.owes_prompt:
                request.owes_prompt = False
                self.waiting.charge_prompt(request)
            if not request.has_started:
                request.has_started = True
                started.append(request)
            for other in passed:
                other.num_bypassed += 1
                is_draining = is_draining or self._was_passed_enough(other)
            if not budget or len(self.running) >= self._max_running:
                break
        return started

    def _prefix(self, request: Request) -> Sequence[bytes]:
        """Return the names of the blocks that a request which starts need not compute."""
        names = self._names(request)
        if not self._states:
            return names
        return self._states.known(names, self._blocks.num_known(names))

    def _names(self, request: Request) -> list[bytes]:
        """Return the names of the blocks that it need not compute if they are there."""
        if not self._shares_prefixes:
            return []
        return name_blocks(request, self._blocks.block_size, request.num_skippable)

    def _name_blocks(self, request: Request) -> None:
        """Let others find the blocks that `request` has filled."""
        size = self._blocks.block_size
        if self._shares_prefixes and request.num_computed >= (request.num_named + 1) * size:
            names = name_blocks(request, size, request.num_computed)
            for i in range(request.num_named, len(names)):
                self._blocks.name(request.blocks[i], names[i])
            request.num_named = len(names)

    def _whose_turn(self) -> str | None:
        """Return the adapter of the first request that let enough others pass, if one did."""
        for line in self.waiting.lines():
            for request in line:
                if self._was_passed_enough(request):
                    return request.digest
                if request.adapter and not request.has_started:
                    # Those behind it came later, and nobody passed them who did not pass it.
                    break
        return None

    def _was_passed_enough(self, request: Request) -> bool:
        return request.adapter is not None and request.num_bypassed >= self._max_bypassed

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        self._want(request)
        self.waiting.put_back(request)
        self.num_preemptions += 1

    def _want(self, request: Request) -> None:
        if request.adapter:
            self._adapters.want(request.adapter)

    def _release(self, request: Request) -> None:
        self._blocks.release(request.blocks)
        if self._states:
            self._states.end(request)
        request.num_computed = request.num_named = 0
        if request.digest:
            self._adapters.release(request.digest)
