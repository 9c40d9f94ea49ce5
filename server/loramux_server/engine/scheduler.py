"""What runs next: continuous batching over requests of many adapters.

Decode goes before prefill, and prompts run in chunks. Tenants take turns by the service that they
received, and priority orders the requests of each tenant (`fair_queue.py`). A request whose adapter
is not resident is overtaken by others, a bounded number of times (`bypass.py`).

When KV blocks run out (`contexts.py`), running requests are preempted and start over later. Start
order alone decides whose: those of the tenant whose request started last. Of this tenant, the worst
priority goes first, among equals the last started (`ranking.py`). So priorities never shift
preemptions to another tenant. A request that starts has blocks for all of its tokens and makes one
more before it needs another block: even one that is always preempted advances with every start.

Knows nothing of tensors or clocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from loramux_server.engine.backlog import Backlog
from loramux_server.engine.bypass import Bypass
from loramux_server.engine.contexts import Contexts, Known
from loramux_server.engine.ends import Ends
from loramux_server.engine.fair_queue import FairQueue
from loramux_server.engine.leases import Adapters, Leases
from loramux_server.engine.plan import Chunk, Plan
from loramux_server.engine.request import Request
from loramux_server.ranking import ranked
from loramux_server.wire.messages import Finish

Gain = tuple[Request, int, Finish | None]
"""A request, its new token, and why it ended with that token; None if it continues."""


class Scheduler:
    """Owns the queues `waiting` and `running`, and the `paused` requests, which are in neither."""

    def __init__(
        self,
        *,
        contexts: Contexts,
        adapters: Adapters,
        ends: Ends,
        max_running: int,
        max_batch_tokens: int,
        max_bypassed: int,
    ) -> None:
        self.waiting = FairQueue()
        self.running: list[Request] = []
        self.paused: set[Request] = set()
        self.num_preemptions = 0
        """Preemptions for want of KV blocks."""
        self.num_prompt_tokens = 0
        """Prompt tokens of requests that started."""
        self.num_shared_tokens = 0
        """Those of them that were found in the prefix cache."""
        self._contexts = contexts
        self._leases = Leases(adapters)
        self._ends = ends
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._bypass = Bypass(self.waiting, max_bypassed)
        self.backlog = Backlog(self.waiting, contexts)
        """Counts the tokens that waiting requests have to compute."""

    @property
    def num_used_blocks(self) -> int:
        """KV blocks that running requests hold."""
        return self._contexts.num_used_blocks

    @property
    def num_used_states(self) -> int:
        """States of recurrent layers that running requests and steps hold."""
        return self._contexts.num_used_states

    @property
    def num_queued(self) -> int:
        """Waiting requests that exceed `max_running` and so cannot start in the next step."""
        return max(0, len(self.waiting) + len(self.running) - self._max_running)

    def add(self, request: Request) -> None:
        """Add `request` to the queue; see `FairQueue.append`."""
        self._leases.want(request)
        self.waiting.append(request)
        self._bypass.entered(request)

    def remove(self, request: Request) -> None:
        """Remove `request`, whatever its state, and free what it holds."""
        self.pause(request)
        if request in self.paused:
            self.paused.remove(request)
            self.waiting.ended(request)

    def pause(self, request: Request) -> None:
        """Remove `request` from its queue and free what it holds; its tokens are kept."""
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)
            self._leases.unwant(request)
        else:
            return
        self.paused.add(request)

    def resume(self, request: Request) -> None:
        """Put a paused `request` back in the queue; its tenant is charged for tokens recomputed."""
        if request in self.paused:
            self.paused.remove(request)
            request.owes_prompt = True
            self._leases.want(request)
            self.waiting.come_back(request)
            self._bypass.entered(request)

    def plan(self, max_prompt_tokens: int | None = None) -> Plan:
        """Return what the next step computes, and allocate the blocks and leases for it.

        Args:
            max_prompt_tokens: Limit on prompt tokens in a step in which other requests decode.
        """
        chunks: list[Chunk] = []
        preemptions = self.num_preemptions
        budget = self._plan_decode(chunks, self._max_batch_tokens)
        if chunks and max_prompt_tokens is not None:
            budget = min(budget, max_prompt_tokens)
        for request in ranked(self.running):
            if request.num_uncomputed > 1 and not request.is_held:
                budget -= self._add_chunk(chunks, request, budget)
        # A preempted request must not take its blocks back in the same step.
        may_start = preemptions == self.num_preemptions and len(self.running) < self._max_running
        started = self._admit(chunks, budget) if may_start and budget else []
        return Plan(chunks, started, self._bypass.first_over_limit())

    def num_left(self, plan: Plan) -> int:
        """Return how many more tokens the step of `plan` may have."""
        return self._max_batch_tokens - plan.num_tokens

    def with_drafts(self, plan: Plan, drafts: Mapping[Request, Sequence[int]]) -> Plan:
        """Return `plan` with `drafts` appended to their requests' tokens, if blocks are left."""
        if not drafts:
            return plan
        chunks = []
        for chunk in plan.chunks:
            draft = drafts.get(chunk.request, ())
            if draft and self._contexts.grow_spare(chunk.request, chunk.end + len(draft)):
                chunk = replace(chunk, draft=tuple(draft))
            chunks.append(chunk)
        return replace(plan, chunks=chunks)

    def follow(self, plan: Plan) -> Plan | None:
        """Return the step after `plan`, which is still running; None if it has to end first.

        Each request continues with a token that is not known yet, and blocks for it are allocated.
        If that token ends the request, the result of the next step for it is dropped.
        """
        if len(self.running) < self._max_running and not all(r.is_held for r in self.waiting):
            return None
        running = set(self.running)
        going_on = [chunk for chunk in plan.chunks if chunk.request in running]
        if len(going_on) < len(running) or not all(chunk.samples for chunk in going_on):
            return None
        going_on = [c for c in going_on if not self._ends.has_length(c.request, 1)]
        if not all(self._contexts.grow(c.request, c.end + 1) for c in going_on):
            return None
        coming = [Chunk(chunk.request, chunk.end, 1, is_ahead=True) for chunk in going_on]
        chunks = [self._contexts.with_state(chunk) for chunk in coming]
        return Plan(chunks, [], self._bypass.first_over_limit()) if chunks else None

    def commit(self, plan: Plan, tokens: Sequence[Sequence[int]]) -> list[Gain]:
        """Apply the result of `plan` and free what finished; requests that ended are skipped.

        Args:
            plan: The step that was run.
            tokens: The new tokens of each chunk that samples, in order: the accepted tokens of its
                draft and one more. Empty if the choice was deferred: then the last token of the
                chunk is computed again.

        Returns:
            The tokens that were appended to each request.
        """
        gains: list[Gain] = []
        new = iter(tokens)
        running = set(self.running)
        for chunk in plan.chunks:
            request, samples = chunk.request, chunk.samples
            chosen = next(new) if samples else ()
            if request not in running:
                self._contexts.commit(chunk, is_running=False)
                continue
            taken = self._take(request, chosen)
            # The last of the new tokens has not been computed yet.
            request.num_computed = chunk.end + len(taken) - samples
            self._contexts.commit(chunk, is_running=True)
            if samples and not taken and not self._contexts.can_go_back(chunk):
                self._put_back(request)
                continue
            if chunk.draft:  # free the blocks of rejected tokens
                self._contexts.shrink(request)
            if taken and taken[-1][2]:
                self.remove(request)
            gains += taken
        return gains

    def check(self) -> None:
        """Assert that the queues are consistent, and that only running requests hold memory."""
        self._contexts.check(self.running)
        idle = [*self.waiting, *self.paused]
        assert not any(request.blocks for request in idle), "a request that is idle holds blocks"
        knowing = [request for request in idle if request.seq2seq_state.encoded is not None]
        assert not knowing, "a request that is idle holds encoder output"
        self.waiting.check()
        self._bypass.check()

    def _take(self, request: Request, tokens: Sequence[int]) -> list[Gain]:
        """Append `tokens` up to the one that ends `request`, and return those appended."""
        taken: list[Gain] = []
        for token in tokens:
            request.output.append(token)
            self.waiting.charge_output(request)
            finish = self._ends.reason(request, token)
            taken.append((request, token, finish))
            if finish:
                break
        return taken

    def _plan_decode(self, chunks: list[Chunk], budget: int) -> int:
        order = ranked(self.running)
        # Preemption takes requests from the end of `order`, so none that has its chunk already.
        for request in tuple(order):
            if request.num_uncomputed != 1 or request.is_held:
                continue
            if not budget or request not in self.running:
                continue
            while not self._contexts.grow(request, request.num_tokens):
                victim = order.pop()
                self._put_back(victim)
                self.num_preemptions += 1
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
            num_tokens = request.chunk_length(start, num_tokens)
            chunk = Chunk(request, start, num_tokens, num_filled=start - done)
            chunks.append(self._contexts.with_state(chunk))
        return min(num_tokens, budget)

    def _admit(self, chunks: list[Chunk], budget: int) -> list[Request]:
        """Start waiting requests within `budget`, and return those that never ran before."""
        started: list[Request] = []
        passed: list[Request] = []
        # Whether one of `passed` reached the limit of `Bypass`: then only base requests start.
        is_draining = False
        for request in self.waiting.in_order():
            if not budget or len(self.running) >= self._max_running:
                break
            if request.is_held:
                continue
            known = self._contexts.known(request)
            if not self._contexts.can_begin(request, known):
                break
            if (request.digest and is_draining) or not self._leases.acquire(request):
                passed.append(request)
                is_draining = is_draining or self._bypass.is_over(request)
                continue
            self._start(request, known)
            budget -= self._add_chunk(chunks, request, budget)
            if not request.has_started:
                request.has_started = True
                started.append(request)
            self._bypass.note(passed)
            is_draining = any(map(self._bypass.is_over, passed))
        return started

    def _start(self, request: Request, known: Known) -> None:
        self._contexts.begin(request, known)
        self.waiting.remove(request)
        self.running.append(request)
        if not request.goes_on:
            self.num_prompt_tokens += request.num_tokens
            self.num_shared_tokens += request.num_computed
        if request.owes_prompt:
            request.owes_prompt = False
            self.waiting.charge_prompt(request)

    def _put_back(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        self._leases.want(request)
        self.waiting.put_back(request)
        self._bypass.entered(request)

    def _release(self, request: Request) -> None:
        self._contexts.end(request)
        self._leases.release(request)
