"""One rank of a test of sharded loading: loads models both ways, and writes down what differed and what it took.

Run as `python sharding_ranks.py CASES.json RANK WORLD_SIZE STORE OUTPUT`.
"""

import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from ift.models import deferred, methods
from ift.models.adapters import attach
from ift.models.base_weights import decoder_layers
from ift.models.enlarging import enlarge
from ift.models.loading import load_base_model
from ift.models.sharded_loading import read_sharded
from ift.models.vocabulary import Growth


def loaded(case: dict[str, Any], *, put_off: bool) -> Any:
    model = load_base_model("model.base", case["base"], case["dtype"], deferred=put_off)
    if gained := case.get("gained"):
        rows = model.get_input_embeddings().weight.shape[0]
        pieces = {rows + number: (number, number + 1) for number in range(gained)}
        model = enlarge(model, Growth(rows, rows + gained, tuple(range(rows)), pieces, "random", 5))
    method = getattr(methods, case["method"])(**case.get("settings", {}))
    return attach(model, method, seed=3, num_steps=5)


def shard(model: Any) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in decoder_layers(inner):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def peak_bytes(profiler: Any) -> int:
    """Return the largest sum of what was allocated at a time."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def differing(model: Any, expected: Any) -> list[str]:
    """Return the names of weights that are not bit by bit those of a model loaded by one process."""
    found = []
    theirs = {**dict(expected.named_parameters()), **dict(expected.named_buffers())}
    ours = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if list(ours) != list(theirs):
        return [f"names: {sorted(ours.keys() ^ theirs.keys())[:4]}"]
    for name, one in ours.items():
        whole = one.full_tensor() if isinstance(one, DTensor) else one
        same = whole.dtype == theirs[name].dtype and one.requires_grad == theirs[name].requires_grad
        if not same or not torch.equal(whole, theirs[name]):
            found.append(name)
    return found


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = loaded(case, put_off=True)
        reading = read_sharded(model, shard, device=torch.device("cpu"))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as whole_profiler:
        expected = loaded(case, put_off=False)
    ids = torch.arange(1, 9)[None]
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        logits, theirs = (one.eval()(input_ids=ids, **inputs).logits for one in (model, expected))
    return {
        "differing": differing(model, expected),
        "logits": float((logits - theirs).abs().max()),
        "own_bytes": reading.own_bytes,
        "model_bytes": reading.model_bytes,
        "adapter_bytes": sum(one.nbytes for name, one in expected.named_parameters() if "lora_" in name),
        "largest_bytes": max(one.nbytes for one in expected.parameters()),
        "peak_bytes": peak_bytes(profiler),
        "peak_bytes_of_whole": peak_bytes(whole_profiler),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # the profiler sees what this thread allocates
    cases, rank, world, store, output = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    deferred.BUFFER_BYTES = 1 << 14  # small as the models are
    torch.set_num_threads(1)
    found = {name: outcome(case) for name, case in json.loads(cases.read_text(encoding="utf-8")).items()}
    Path(output).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
