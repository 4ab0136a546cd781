"""Measures `ift fit` against hand-written loops and other trainers: tokens per second, memory, time to the first step.

usage: python scripts/bench/training.py [--steps 12] [--rounds 5] [--methods lora full] [--only ift limit] [--small]
                                        [--threads 2] [--chart FILE.svg] [--python PEER=INTERPRETER ...]

Every runner trains the same random Llama (28.7 million parameters, 50k tokens) on the same steps of 8 records, each
time in a process of its own, by turns, so that whatever else the machine does hits all alike; medians and ratios count.
`ift` runs through its own command line. The loops are those of training_loops.py, `limit` among them; other trainers,
where they are installed, those of training_peers.py, by an interpreter of their own where one is named. A runner whose
losses or token counts differ from the first's ends the measurement. Prints a Markdown table; its ratios to `limit` are
medians of the ratios within a round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import training_notes  # noqa: E402
import training_work  # noqa: E402
from training_chart import chart  # noqa: E402
from training_notes import Run  # noqa: E402

LOOPS = ("padded", "unpadded", "limit")
TITLES = {
    "padded": "hand-written, padded, full logits",
    "unpadded": "hand-written, no padding, full logits",
    "limit": "hand-written limit: fused head and loss, attention per example",
    "ift": "ift fit",
    "transformers": "transformers' Trainer, padded",
    "trl": "TRL's SFTTrainer, padding-free",
    "llamafactory": "LLaMA-Factory, neat packing",
    "llamafactory_padded": "LLaMA-Factory, padded",
}


def ift_config(folder: Path, method: str, *, steps: int, notes: Path, run_dir: Path) -> dict[str, Any]:
    """Return the run of `ift fit` that does what the loops do."""
    lora = {"class_path": "peft.LoraConfig", "init_args": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}}
    lora["init_args"]["target_modules"] = ["q_proj", "v_proj"]  # type: ignore[index]
    return {
        "run_dir": str(run_dir),
        "seed_everything": training_work.SEED,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": steps,
            "max_epochs": -1,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "training_probe.Probe", "init_args": {"path": str(notes)}}],
        },
        "model": {
            "base": str(folder / "base"),
            "adapter": lora if method == "lora" else None,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4, "weight_decay": 0.0}},
            "schedule": {"kind": "constant", "warmup": 0},
            "gradient_clip_norm": None,
        },
        "data": training_work.ift_settings(folder),
    }


def command_of(name: str, folder: Path, method: str, *, steps: int, notes: Path, python: str) -> list[str]:
    """Return the command line of a runner."""
    if name != "ift":
        own = ["--runner", name, "--folder", str(folder), "--method", method, "--notes", str(notes)]
        return [python, str(HERE / "training.py"), *own, "--steps", str(steps)]
    config = notes.with_suffix(".yaml")  # JSON is YAML
    run_dir = notes.with_suffix("")
    config.write_text(json.dumps(ift_config(folder, method, steps=steps, notes=notes, run_dir=run_dir)))
    return [python, "-m", "ift", "fit", "--config", str(config)]


def measure(name: str, folder: Path, method: str, *, steps: int, number: int, threads: int | None, python: str) -> Run:
    """Train in a process of its own."""
    notes = folder / f"{name}_{method}_{number}.jsonl"
    command = command_of(name, folder, method, steps=steps, notes=notes, python=python)
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if name == "limit":
        environment["THP_MEM_ALLOC_ENABLE"] = "1"
    with (folder / "output.txt").open("w+", encoding="utf-8") as output:
        started = time.time()
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=folder)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            raise SystemExit(f"{name}: {output.read()[-4000:]}")
    return training_notes.read_run(notes, started=started, peak_mib=usage.ru_maxrss / 1024)


def check_same(runs: dict[str, Run]) -> None:
    """End where a runner did other work than the first: the first loss, every loss after it, and all token counts."""
    first, reference = next(iter(runs.items()))
    for name, run in runs.items():
        if run.tokens != reference.tokens:
            raise SystemExit(f"{name} counts {run.tokens} supervised tokens, {first} {reference.tokens}")
        # The first LoRA matrix is drawn by each in its own way, so that later losses are near, not equal.
        for step, (one, other) in enumerate(zip(run.losses, reference.losses, strict=True)):
            if abs(one - other) > (2e-4 if step == 0 else 5e-3) * other:
                raise SystemExit(f"{name} has loss {one} in step {step + 1}, {first} {other}")


def table(runs: dict[str, list[Run]]) -> str:
    """Return the table of one method as Markdown."""
    lines = [
        "| runner | supervised tokens/s | of the limit | … per processor second | peak RSS | first step after start |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, own in runs.items():
        shares = [
            [getattr(one, field) / getattr(other, field) for one, other in zip(own, runs["limit"], strict=True)]
            for field in ("rate", "processor_rate")
        ]
        lines.append(
            f"| {TITLES.get(name, name)} | {median(one.rate for one in own):.0f} | {median(shares[0]):.2f} | "
            f"{median(shares[1]):.2f} | {median(one.peak_mib for one in own) / 1024:.2f} GiB | "
            f"{median(one.first_step_seconds for one in own):.1f} s |"
        )
    return "\n".join(lines)


def compare(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Measure every runner by turns, and print the tables."""
    found: dict[str, dict[str, list[Run]]] = {}
    sizes = training_work.small_sizes() if arguments.small else training_work.Sizes()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        work = training_work.make_work(folder, sizes, steps=arguments.steps)
        print(f"{work}, {arguments.steps} steps, {arguments.rounds} rounds", flush=True)
        for method in arguments.methods:
            found[method] = {name: [] for name in names}
            for number in range(arguments.rounds):
                options: Any = {"steps": arguments.steps, "number": number, "threads": arguments.threads}
                turn = {
                    name: measure(name, folder, method, **options, python=arguments.python.get(name, sys.executable))
                    for name in names
                }
                check_same(turn)
                for name, run in turn.items():
                    found[method][name].append(run)
                    share = run.rate / turn["limit"].rate
                    by_processor = run.processor_rate / turn["limit"].processor_rate
                    line = f"{method} {number} {name:<12} {run.rate:7.0f} {share:5.2f} {by_processor:5.2f}"
                    print(line, file=sys.stderr, flush=True)
            print(f"\n{method}\n\n{table(found[method])}", flush=True)
    if arguments.chart:
        rates = {m: {n: median(run.rate for run in own) for n, own in r.items()} for m, r in found.items()}
        arguments.chart.write_text(chart(rates, TITLES), encoding="utf-8")


def train(arguments: argparse.Namespace) -> None:
    """Be one of the runners."""
    with arguments.notes.open("w", encoding="utf-8") as file:

        def tell(loss: float, supervised: int) -> None:
            training_notes.note(file, loss, supervised)

        if arguments.runner in LOOPS:
            import training_loops

            training_loops.run(arguments.runner, arguments.folder, arguments.method, arguments.steps, tell)
        else:
            import training_peers

            training_peers.PEERS[arguments.runner][0](arguments.folder, arguments.method, arguments.steps, tell)


def main() -> int:
    """Read the command line, and measure or be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps of a run, the first two untimed (default: 12)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each runner (default: 5)")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--only", nargs="+", help="these runners, beside 'limit' (default: all that are here)")
    parser.add_argument("--small", action="store_true", help="a smaller model, to see whether everything runs")
    parser.add_argument("--threads", type=int, help="of every runner (default: as many as torch takes)")
    parser.add_argument("--chart", type=Path, help="write the rates as a chart (SVG)")
    own = "run these peers by interpreters of their own, as where their packages need other versions than ift's"
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=INTERPRETER", help=own)
    parser.add_argument("--runner", help="be this runner (used by the script), with the next three")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--method")
    parser.add_argument("--notes", type=Path)
    arguments = parser.parse_args()
    if arguments.steps < training_notes.WARM_UP + 1:
        parser.error(f"--steps: {arguments.steps} leaves none to time after {training_notes.WARM_UP} of warm-up")
    if arguments.runner:
        train(arguments)
        return 0
    import training_peers

    arguments.python = dict(one.partition("=")[::2] for one in arguments.python)
    if unknown := [name for name in arguments.python if name not in training_peers.PEERS]:
        parser.error(f"--python: {', '.join(unknown)} not among {', '.join(training_peers.PEERS)}")
    known = [*LOOPS, "ift", *training_peers.installed(arguments.python)]
    if unknown := [name for name in arguments.only or [] if name not in known]:
        parser.error(f"--only: {', '.join(unknown)} not among {', '.join(known)}")
    compare(arguments, [name for name in known if not arguments.only or name in (*arguments.only, "limit")])
    return 0


if __name__ == "__main__":
    sys.exit(main())
