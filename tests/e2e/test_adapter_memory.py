"""Far more adapters in use than there is room for: everything completes, and rightly."""

import asyncio
from functools import partial
from pathlib import Path

from loramux import AsyncClient
from tests.support.adapters import save_adapter
from tests.support.models import tiny_model
from tests.support.polling import eventually
from tests.support.server import RunningServer

NUM_ADAPTERS = 64
ROWS = 32  # four adapters of rank 8
ROW_BYTES = 4 * 2 * (3 * 32 + 64 + 32 + 32 + 2 * 32 + 96 + 48 + 32)  # of the tiny Llama


def has_ended(server: RunningServer) -> bool:
    return not server.metrics()["loramux_requests_running"]


async def test_sixty_four_adapters_share_the_room_of_four(tmp_path: Path, tiny_base: Path) -> None:
    model = tiny_model("llama", vocab_size=259)
    for seed in range(NUM_ADAPTERS):
        save_adapter(
            model, tmp_path / "adapters" / f"a{seed:02d}", seed=seed, r=8,
            target_modules=["q_proj", "up_proj"],
        )  # fmt: skip
    names = [f"a{seed:02d}" for seed in range(NUM_ADAPTERS)]
    wide, narrow = (str(rows * ROW_BYTES) for rows in (8 * NUM_ADAPTERS, ROWS))
    answers: dict[str, list[tuple[int, ...]]] = {}
    for room in (wide, narrow):
        with RunningServer(
            tmp_path / room, tiny_base, "--adapters", str(tmp_path / "adapters"),
            "--adapter-memory", room, "--host-adapter-memory", "60K", "--max-bypassed", "8",
        ) as server:  # fmt: skip
            async with AsyncClient(server.target) as client:
                done = await asyncio.gather(*(
                    client.generate(
                        f"prompt {i}", adapter=name, temperature=0, max_tokens=6, ignore_eos=True
                    )
                    for i, name in enumerate(2 * names)
                ))  # fmt: skip
            answers[room] = [generation.token_ids for generation in done]
            # The last report of the engine may still be on its way.
            assert eventually(partial(has_ended, server))
            metrics = server.metrics()
    assert answers[narrow] == answers[wide]
    assert len(set(answers[narrow])) > NUM_ADAPTERS  # they are different adapters
    assert metrics['loramux_adapters_resident{tier="device"}'] <= 4
    assert metrics['loramux_adapter_bytes{tier="device"}'] <= ROWS * ROW_BYTES
    assert metrics['loramux_adapter_bytes{tier="host"}'] <= 60 << 10
    assert metrics['loramux_adapter_evictions_total{tier="device"}'] >= NUM_ADAPTERS - 4
    assert metrics["loramux_requests_running"] == metrics["loramux_requests_waiting"] == 0
