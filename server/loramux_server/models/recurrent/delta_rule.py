"""Gated delta rule of linear attention, which updates states in their slots."""

from typing import Any

import torch

from loramux_server.models.recurrent.in_place import InPlaceUpdate, is_close

_EPSILON = 1e-6


class DeltaRule(InPlaceUpdate):
    """Takes the place of the function that a layer's forward calls for single tokens.

    Legend: T requests, H value heads, J key heads, K key width, V value width, S slots.
    """

    names = ("torch_recurrent_gated_delta_rule", "recurrent_kimi_delta_attention")

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return each request's output, [T, 1, H, V], and the states.

        Args:
            query: [T, 1, J, K].
            key: Likewise.
            value: [T, 1, H, V].
            g: Log decays, [T, 1, H] or [T, 1, H, K].
            beta: [T, 1, H].
            initial_state: All slots, [S, H, K, V], as passed to `begin`; anything else is one state
                per request, and is handled by the layer's own function.
            output_final_state: Whether states are wanted.
            use_qk_l2norm_in_kernel: Whether queries and keys still have to be normalized.
            kwargs: Other arguments of the layer.
        """
        slots = self._take_slots(initial_state)
        if slots is None or initial_state is None:
            return self._original(  # type: ignore[no-any-return]
                query, key, value, g=g, beta=beta, initial_state=initial_state,
                output_final_state=output_final_state,
                use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **kwargs,
            )  # fmt: skip
        q, k, v, log_decay, rate = (x[:, 0].float() for x in (query, key, value, g, beta))
        if use_qk_l2norm_in_kernel:
            q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + _EPSILON) for x in (q, k))
        q = q * q.shape[-1] ** -0.5
        decay = log_decay.exp()
        if decay.dim() == 2:
            decay = decay[..., None].expand(*decay.shape, k.shape[-1])
        out = self._step.backend.delta_rule(q, k, v, decay, rate, initial_state, *slots)
        return out[:, None].to(value.dtype), initial_state

    def _is_same(self, heads: int, rows: int, columns: int) -> bool:
        generator = torch.Generator().manual_seed(0)

        def random(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator)

        q, k = (random(2, 1, heads, rows) for _ in range(2))
        v, beta = random(2, 1, heads, columns), random(2, 1, heads).sigmoid()
        slots = random(4, heads, rows, columns)
        read_T, write_T = torch.tensor([1, 2]), torch.tensor([1, 3])
        for size in ((2, 1, heads), (2, 1, heads, rows)):  # a rule supports one of them
            named: dict[str, Any] = {
                "g": -random(*size).abs(), "beta": beta, "output_final_state": True,
                "use_qk_l2norm_in_kernel": True,
            }  # fmt: skip
            try:
                wanted, states = self._original(q, k, v, initial_state=slots[read_T], **named)
            except (RuntimeError, IndexError):
                continue
            changed = slots.clone()
            self.begin(changed, read_T, write_T)
            found, _ = self(q, k, v, initial_state=changed, **named)
            if is_close(found, wanted) and is_close(changed[write_T], states):
                return True
        return False
