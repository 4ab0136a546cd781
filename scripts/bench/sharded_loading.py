"""Measures the host memory that ranks take to load a large model: all of it first, or each rank its own rows.

usage: python scripts/bench/sharded_loading.py [--folder FOLDER] [--ranks 2] [--layers 16] [--output RESULTS.md]

A Llama of about 1.1 B random parameters is written in bfloat16, one file for a layer, so that nothing ever holds all of
it. Each measurement has fresh processes, joined by gloo on this machine. What a process has in memory is read 50 times
a second, above what it had before loading: memory of its own (RssAnon and RssShmem), and pages of mapped files
(RssFile), which the system may take back and which ranks share.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WAYS = ("own rows", "whole first")
KINDS = (("bfloat16", "full"), ("float32", "full"), ("float32", "lora"))
CASES = [(dtype, method, way) for way in WAYS for dtype, method in KINDS]
MIB = 1 << 20


def config(layers: int) -> Any:
    """Return the config of a Llama of about 1.1 B parameters, with 16 layers."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def write_model(folder: Path, layers: int) -> int:
    """Write random weights, a file for each layer and one for the rest, and return the number of parameters."""
    from transformers import LlamaForCausalLM

    folder.mkdir(parents=True)
    settings = config(layers)
    settings.architectures = ["LlamaForCausalLM"]
    settings.save_pretrained(str(folder))
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in LlamaForCausalLM(settings).named_parameters()}
    groups: dict[str, list[str]] = {}
    for name in shapes:
        layer = name.split(".")[2] if ".layers." in name else "rest"
        groups.setdefault(f"model-{layer}.safetensors", []).append(name)
    generator = torch.Generator().manual_seed(0)
    for file, names in groups.items():
        tensors = {name: torch.randn(shapes[name], generator=generator, dtype=torch.bfloat16) * 0.02 for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in groups.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(shape.numel() for shape in shapes.values())


def resident() -> dict[str, int]:
    """Return what this process has in memory, by kind, in bytes."""
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("Rss"):
            name, value = line.split(":")
            found[name] = int(value.split()[0]) * 1024
    return {"own": found["RssAnon"] + found["RssShmem"], "mapped": found["RssFile"], "all": sum(found.values())}


@contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """Give the largest values within it, in MiB above those at its beginning, and the seconds that it took."""
    before, most, ended = resident(), dict.fromkeys(("own", "mapped", "all"), 0), threading.Event()

    def look() -> None:
        for kind, size in resident().items():
            most[kind] = max(most[kind], size - before[kind])

    def watch() -> None:
        while not ended.wait(0.02):
            look()

    result: dict[str, float] = {}
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield result
    finally:
        look()
        ended.set()
        watcher.join()
        result.update({kind: size / MIB for kind, size in most.items()}, seconds=time.perf_counter() - start)


def rank_main(folder: str, dtype: Any, method: str, way: str) -> None:
    """Load as one rank, and print what it took."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    from ift.models import methods
    from ift.models.adapters import attach
    from ift.models.loading import load_base_model
    from ift.models.sharded_loading import read_sharded
    from ift.training.sharding import shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    load_base_model("base", str(Path(folder) / "warm"), dtype)  # so that no import is counted
    dist.barrier()
    with peaks() as found:
        model = load_base_model("base", str(Path(folder) / "model"), dtype, deferred=way == WAYS[0])
        model = attach(model, getattr(methods, method)(), seed=0, num_steps=1)
        read_sharded(model, lambda one: shard(one, mesh), device=torch.device("cpu"))
        dist.barrier()
    local = [one.to_local() if isinstance(one, DTensor) else one for one in model.parameters()]
    found["kept"] = sum(one.nbytes for one in local) / MIB
    print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def measure(folder: Path, case: tuple[str, str, str], *, ranks: int) -> list[dict[str, float]]:
    """Return what each rank of fresh processes took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--rank", str(folder), *case]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**common, "RANK": str(rank)})
        for rank in range(ranks)
    ]
    try:
        return [json.loads(process.communicate(timeout=900)[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()


def table(rows: list[tuple[tuple[str, str, str], list[dict[str, float]]]]) -> str:
    """Return a Markdown table of the largest values over ranks."""
    lines = [
        "| weights in memory | method | way | kept by a rank | peak of its own | peak of mapped pages | peak of both "
        "| seconds |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for (dtype, method, way), found in rows:
        most = {name: max(one[name] for one in found) for name in found[0]}
        sizes = " | ".join(f"{most[name]:,.0f}" for name in ("kept", "own", "mapped", "all"))
        lines.append(f"| {dtype} | {method} | {way} | {sizes} | {most['seconds']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Write the model, measure every case, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="for the model; a temporary one by default")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=16, help="of the model; 16 are 1.1 B parameters")
    parser.add_argument("--output", type=Path, default=None, help="where to write the table as well")
    parser.add_argument("--rank", nargs=4, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        rank_main(*options.rank)
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="sharded-loading-"))
    try:
        number = write_model(folder / "model", options.layers)
        write_model(folder / "warm", 1)
        print(f"{number / 1e9:.2f} B parameters, bfloat16 in files, {options.ranks} ranks; MiB, the largest rank's")
        rows = []
        for case in CASES:
            found = measure(folder, case, ranks=options.ranks)
            rows.append((case, found))
            print(*case, json.dumps(found), file=sys.stderr, flush=True)
        print(table(rows))
        if options.output is not None:
            options.output.write_text(table(rows) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
