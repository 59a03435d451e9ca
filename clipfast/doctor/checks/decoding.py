"""That images are decoded, and whether as fast as the model takes them."""

import itertools
import time
from collections.abc import Mapping
from dataclasses import replace

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.finding import Finding, failure, ok, warning
from clipfast.doctor.situation import Situation
from clipfast.env import OPTIONAL, version

_MOST_BATCH, _SECONDS = 64, 2.0


def look(situation: Situation) -> Seen:
    """A few seconds of batches of ``--data.train``, as a run reads them."""
    absent = [
        part for part in ("DALI", "tokenizers", "ftfy") if version(*OPTIONAL[part][0]) is None
    ]
    plan = situation.plan
    if plan is None or plan.config.data.synthetic is not None or absent:
        words = f"{', '.join(absent)} absent" if absent else "no shards are named"
        return {"skipped": words}
    from clipfast.engine.builders import build_loader

    ranks = plan.process.world_size
    local = min(plan.local_batch, _MOST_BATCH)
    loader = build_loader(replace(plan, config=replace(plan.config, batch_size=local * ranks)))
    batches = iter(loader)
    next(batches)
    count, began = 0, time.perf_counter()
    for batch in itertools.islice(batches, 100):
        assert batch.images.isfinite().all(), "decoded pixels are no numbers"
        count += len(batch.images)
        if time.perf_counter() - began > _SECONDS:
            break
    seconds = time.perf_counter() - began
    return {
        "images_per_second": count / seconds,
        "step": situation.notes.get("images_per_second", 0.0),
        "threads": plan.decode_threads,
        "size": plan.architecture.vision.image_size,
    }


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Ranks that would wait for their data."""
    done = {rank: each for rank, each in seen.items() if "skipped" not in each}
    if not done:
        first = next(iter(seen.values()))
        text = f"not looked at: {first['skipped']}"
        is_lacking = "absent" in first["skipped"]
        return [warning(text, "pip install 'clipfast[train]'") if is_lacking else ok(text)]
    none = [rank for rank in seen if rank not in done]
    found = []
    if none:
        found.append(failure("these ranks decode nothing", "See check installed", none))
    slow = [rank for rank, each in done.items() if 0 < each["images_per_second"] < each["step"]]
    first = next(iter(done.values()))
    if slow:
        each = done[slow[0]]
        found.append(
            warning(
                f"decodes {each['images_per_second']:,.0f} images/s, and the model takes "
                f"{each['step']:,.0f}",
                f"More --data.threads (now {each['threads']}), more cores a rank, or images packed "
                "at the size that is trained (python -m clipfast.data.pack --help)",
                slow,
            )
        )
    total = sum(each["images_per_second"] for each in done.values())
    text = (
        f"{total:,.0f} images/s of {first['size']} px in all, {first['threads']} thread(s) a rank, "
        f"all ranks at once"
    )
    return [*found, ok(text)]


DECODING = Check("decoding", look, judge, limit=60)
