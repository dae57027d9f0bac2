"""A while of everything at once: memory and descriptors stay where they are. FASTCHAT_SOAK=3600 makes it an hour."""

import asyncio
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from live import serving
from wire import Wire, request_bytes

CHAT = "/v1/chat/completions"
SECONDS = float(os.environ.get("FASTCHAT_SOAK", "15"))


@pytest.mark.timeout(SECONDS * 2 + 200)
def test_soak(demo_model: Path, figure: Any) -> None:
    options = ("--max-model-len", "512", "--kv-memory", "24MiB", "--max-num-seqs", "16", "--heartbeat", "0.5")
    cache = ("--response-cache", "memory", "--response-cache-size", "1MiB", "--resume", "1", "--resume-memory", "1MiB")
    with serving(demo_model, *options, *cache) as live:
        counts = dict.fromkeys(("whole", "left", "malformed", "slow", "refused"), 0)
        samples: list[tuple[float, int]] = []

        async def client(seed: int, until: float) -> None:
            rng = random.Random(seed)
            while time.monotonic() < until:
                roll = rng.random()
                wire = await Wire.open(live.port, buffer=4096 if roll > 0.95 else None)
                content = " ".join(rng.choices(("red", "green", "blue"), k=rng.choice((3, 30, 100))))
                body = live.chat(content, stream=rng.random() < 0.7, max_tokens=rng.randrange(1, 24), ignore_eos=True)
                headers = {"x-fastchat-resume": "true"} if rng.random() < 0.2 else None
                raw = request_bytes(CHAT, body, headers=headers)
                try:
                    if roll < 0.3:
                        wire.send(raw)
                        await asyncio.sleep(rng.choice((0.0, 0.01, 0.1, 0.3)))
                        counts["left"] += 1
                        wire.reset() if rng.random() < 0.5 else wire.close()
                        continue
                    if roll < 0.35:
                        wire.send(raw[: len(raw) // 2] + b"\x00" + raw[len(raw) // 2 :])
                        assert (await wire.answer()).status == 400
                        counts["malformed"] += 1
                    else:
                        wire.send(raw)
                        if roll > 0.95:
                            await asyncio.sleep(1)
                            counts["slow"] += 1
                        found = await wire.answer()
                        assert found.done or found.status == 503, found
                        counts["whole" if found.done else "refused"] += 1
                finally:
                    wire.close()

        async def main(seconds: float, clients: int) -> None:
            until = time.monotonic() + seconds
            running = [asyncio.ensure_future(client(seed, until)) for seed in range(clients)]
            began = time.monotonic()
            while time.monotonic() < until:
                await asyncio.sleep(0.5)
                samples.append((time.monotonic() - began, live.memory()))
            await asyncio.gather(*running)

        def settled() -> tuple[int, int, float]:
            now = live.idle(60)
            assert now["fastchat_kv_blocks_free"] == now["fastchat_kv_blocks_total"]
            # Rings and their last followers end.
            time.sleep(2.5)
            files = len(list(Path(f"/proc/{live.process.pid}/fd").iterdir()))
            return live.memory(), files, live.metrics()["fastchat_requests_open"]

        asyncio.run(main(SECONDS / 2, 12))
        memory, files, _ = settled()
        samples.clear()
        asyncio.run(main(SECONDS, 12))
        after, files_after, still_open = settled()
        assert still_open <= 1
        assert files_after <= files + 4
        # A short run still warms up between the rests.
        assert after - memory < (16 if SECONDS >= 600 else 32) << 20
        grown = (after - memory) / (1 << 20)
        parts = [
            f"{SECONDS:.0f} s of {counts}: {grown:+.1f} MiB between two rests",
            f"{files_after - files:+d} descriptors",
        ]
        if SECONDS >= 600:
            # Of less time it would be that of a server that warms up.
            slope = statistics.linear_regression(*zip(*samples, strict=True)).slope
            parts.append(f"{slope * 3600 / (1 << 20):+.1f} MiB an hour under load")
        figure(", ".join(parts))
        assert live.stop() == 0
