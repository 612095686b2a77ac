#!/usr/bin/env python3
"""Checks and measures `train` on an NVIDIA GPU in one visit, beside PyTorch on the same GPU.

    cargo build --release --features cuda
    python3 trainer/benches/gpu.py --train target/release/train --output gpu

Needs the driver, NVRTC with CUDA's headers (CUDA_PATH), and for the comparison PyTorch; nothing is fetched, all weights are
random. Writes gpu.json after each row and prints a table at the end. Parts, each of which can be run alone by `--only`:

    checks   `train check`: every block and loss against the CPU, whole steps, a stop, too little memory
    limit    small-gpu.toml with all memory but 4 GiB occupied, and from micro-batch 16 as well
    speed    images per second and peak memory of `train`, by precision, micro-batch and recomputation
    torch    the same of torch_step.py
"""
import argparse, json, os, pathlib, shlex, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
PARTS = ("checks", "limit", "speed", "torch")
MICRO = (1, 4, 16)


class Results:
    """Rows by part, on the disk as soon as they are there."""

    def __init__(self, folder):
        self.path, self.parts, self.started = folder / "gpu.json", {}, time.monotonic()

    def add(self, part, row):
        self.parts.setdefault(part, []).append(row)
        self.path.write_text(json.dumps(self.parts, indent=1))
        shown = {k: v for k, v in row.items() if k not in ("memory", "tail")}
        print(f"[{time.monotonic() - self.started:5.0f} s] {part}: {json.dumps(shown)}", flush=True)


def run(command, timeout, **more):
    """The finished process, or one with return code 124."""
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **more)
    except subprocess.TimeoutExpired as error:
        text = lambda value: value.decode(errors="replace") if isinstance(value, bytes) else value or ""
        done = subprocess.CompletedProcess(command, 124, text(error.stdout), text(error.stderr))
    done.seconds = round(time.monotonic() - started, 1)
    return done


def smi(query):
    done = run(["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"], 20)
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


class ProcessMemory:
    """The most that a GPU's driver has seen in use above what was in use before, context included, in MiB."""

    def __enter__(self):
        self.before = self.most = self.used()
        self.poll = subprocess.Popen(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "100"],
            stdout=subprocess.PIPE, text=True)
        return self

    def used(self):
        return int(smi("gpu=memory.used")[0][0])

    def __exit__(self, *_):
        self.poll.terminate()
        values = [int(line) for line in self.poll.communicate()[0].split() if line.isdigit()]
        self.most = max(values, default=self.before)
        self.mib = self.most - self.before


def checks(args, results):
    command = [args.train, "check", "--device", args.device, "--scale", args.scale, "--json"]
    done = run(command + shlex.split(args.check), args.part_timeout)
    try:
        rows = json.loads(done.stdout)["rows"]
    except (json.JSONDecodeError, KeyError):
        rows = []
        results.add("checks", {"rc": done.returncode, "seconds": done.seconds, "tail": done.stderr[-4000:]})
        print(done.stderr[-6000:], flush=True)
    for row in rows:
        results.add("checks", row)


def metrics(folder):
    path = pathlib.Path(folder) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def limit(args, results):
    for name, more in (("as configured", []),
                       ("from micro-batch 16, nothing computed again, no limit",
                        ["--set", "batch.micro=16", "--set", "memory.recompute=none", "--set", "memory.limit=1TiB"])):
        ballast = subprocess.Popen([args.train, "ballast", "--device", args.device, "--leave", "4GiB"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        said = ballast.stdout.readline().strip()
        if not said:
            results.add("limit", {"what": name, "rc": ballast.wait(), "tail": "there is no ballast: " + ballast.stderr.read()[-1000:]})
            continue
        with tempfile.TemporaryDirectory() as folder, ProcessMemory() as memory:
            config = pathlib.Path(folder) / "small-gpu.toml"
            drawn = (HERE.parents[1] / "configs/small-gpu.toml").read_text()
            config.write_text(drawn.replace('source = "folder"', 'source = "shapes"').replace('path = "images"', ""))
            command = [args.train, "--config", str(config), "--random-weights", "--run-dir", folder + "/run",
                       "--set", "run.steps=3", "--set", "schedule.warmup=0", "--set", f"run.device={args.device}",
                       "--set", "losses.adversarial.start=0", "--set", "losses.adversarial.ramp=0",
                       "--set", "checkpoints.every_steps=0", "--set", "validation.images=8"]
            done = run(command + more, args.part_timeout)
            lines = metrics(folder + "/run")
        ballast.communicate()
        results.add("limit", {
            "what": name, "ballast": said, "rc": done.returncode, "seconds": done.seconds, "process_mib": memory.mib,
            "steps": len(lines), "micro": [line["micro"] for line in lines],
            "reserved_mib": [line["peak_memory"] >> 20 for line in lines],
            "driver_mib": [line.get("process_memory", 0) >> 20 for line in lines],
            "images_per_second": [round(line["images_per_second"], 2) for line in lines],
            "recovered": [event for line in lines for event in line.get("recovered", [])],
            "memory": [line.get("memory") for line in lines], "tail": done.stderr[-2000:]})
        if done.returncode:
            print(done.stderr[-3000:], flush=True)


def speed(args, results):
    with tempfile.TemporaryDirectory() as folder:
        command = [args.train, "sweep", "--config", str(HERE / "step-256.toml"), "--device", args.device, "--json",
                   "--effective", str(args.effective), "--micro", ",".join(map(str, args.micro)),
                   "--precision", ",".join(args.precision), "--recompute", ",".join(args.recompute),
                   "--steps", str(args.steps), "--timeout", str(args.row_timeout), "--output", folder]
        done = run(command, args.part_timeout)
        print(done.stderr[-3000:], flush=True)
        try:
            sweep = json.loads(done.stdout)
        except json.JSONDecodeError:
            results.add("speed", {"rc": done.returncode, "seconds": done.seconds, "tail": done.stderr[-3000:]})
            return
        for row in sweep["rows"]:
            results.add("speed", {k: row[k] for k in ("micro", "precision", "recompute", "status", "peak_memory",
                                                      "images_per_second", "deviation", "seconds", "memory")}
                        | {"message": row.get("message")})


def torch(args, results):
    """One process for all rows: what a start of PyTorch takes is not what is compared."""
    variants = [(precision, micro, extra) for precision in args.precision
                for extra in args.torch for micro in args.micro]
    code = f"""
import contextlib, gc, io, json, sys
sys.path.insert(0, {str(HERE)!r})
import torch, torch_step
for precision, micro, extra in {variants!r}:
    sys.argv = ['torch_step.py', '--device', 'cuda', '--precision', precision, '--micro', str(micro), '--accum',
                str({args.effective} // micro), '--steps', '{args.steps}', '--warmup', '2', *extra.split()]
    try:
        torch_step.main()
    except Exception as error:
        print(json.dumps(dict(precision=precision, micro=micro, extra=extra, error=str(error)[:300])))
    gc.collect(); torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    sys.stdout.flush()
"""
    done = run([sys.executable, "-c", code], args.part_timeout, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            results.add("torch", json.loads(line))
    if done.returncode:
        results.add("torch", {"rc": done.returncode, "tail": done.stderr[-1500:]})


def table(results):
    print("\nchecks that are not met:")
    for row in results.parts.get("checks", []):
        if not row.get("met"):
            print("  ", {k: v for k, v in row.items() if k != "tail"})
    torch_rows = {}
    for row in results.parts.get("torch", []):
        if "images_per_second" in row:
            variant = " ".join(k for k in ("checkpoint", "compile", "channels_last") if row[k]) or "plain"
            torch_rows[row["precision"], row["micro"], variant] = row
    print(f"\n{'':28}{'images/s':>10}{'MiB':>8}")
    for row in results.parts.get("speed", []):
        if row.get("images_per_second"):
            print(f"train {row['precision']} {row['micro']:>2} {row['recompute']:<12}"
                  f"{row['images_per_second']:>10.2f}{row['peak_memory'] >> 20:>8}  deviation {row['deviation']}")
        else:
            print("train", row)
    for (precision, micro, variant), row in torch_rows.items():
        print(f"torch {precision} {micro:>2} {variant:<12}{row['images_per_second']:>10.2f}{row['peak_reserved_mib']:>8}"
              f"  allocated {row['peak_allocated_mib']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scale", default="full", choices=("small", "full"))
    parser.add_argument("--check", default="", help="more arguments for `train check`, as in --check='--only layers'")
    parser.add_argument("--effective", type=int, default=16)
    parser.add_argument("--micro", nargs="+", type=int, default=MICRO)
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp16"])
    parser.add_argument("--recompute", nargs="+", default=["none", "blocks"])
    parser.add_argument("--torch", nargs="+", default=["", "--checkpoint", "--channels-last", "--compile"],
                        help="arguments of torch_step.py, a row each")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--row-timeout", type=int, default=120)
    parser.add_argument("--part-timeout", type=int, default=300)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    args.train = str(pathlib.Path(args.train).resolve())
    results = Results(args.output)
    gpu = smi("gpu=name,driver_version,memory.total,memory.used")
    results.add("machine", {"gpu": gpu, "version": run([args.train, "--version"], 20).stdout.strip(),
                            "cuda_path": os.environ.get("CUDA_PATH"), "date": time.strftime("%Y-%m-%d")})
    for part in args.only:
        globals()[part](args, results)
    table(results)


if __name__ == "__main__":
    main()
