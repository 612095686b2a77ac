"""Start a run, and see what its saves do to the time of its steps.

    python measure_save.py RUN-FOLDER train --config step-256.toml --run-dir RUN-FOLDER ...

Looks at the run's folder every few milliseconds: for lines of metrics.jsonl, which come at the end of steps, and for checkpoints
that are being written.
"""

import json
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

LOOK = 0.004


def lines(log, seen):
    text = log.read_bytes()[seen:] if log.exists() else b""
    whole = text[:text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], seen + len(whole)


def main():
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    seen, steps, saves, begun = 0, [], [], None
    while process.poll() is None:
        now = time.monotonic()
        new, seen = lines(folder / "metrics.jsonl", seen)
        # The speed is that of a step alone; what is between two steps is not in it.
        steps += [(now, line["step"], line["images_per_second"]) for line in new]
        writing = next((folder / "checkpoints").glob(".step-*.tmp-*"), None)
        if writing and not begun:
            begun = now
        if begun and not writing:
            saves.append((begun, now))
            begun = None
        time.sleep(LOOK)
    effective = tomllib.loads((folder / "config.toml").read_text())["batch"]["effective"]
    alone, beside, first, pauses = [], [], [], []
    for (before, _, _), (end, _, speed) in zip(steps, steps[1:]):
        took = effective / speed
        start = end - took
        during = [(a, b) for a, b in saves if a < end and b > start]
        share = sum(min(b, end) - max(a, start) for a, b in during) / took
        pause = start - before
        if pause > 0.02:
            pauses.append(pause)
        (beside if share > 0.9 else alone if share == 0 else first).append(took)
    print(f"{len(saves)} saves of {', '.join(f'{b - a:.2f}' for a, b in saves)} s")
    for name, took in [("alone", alone), ("beside a save", beside), ("partly beside one", first)]:
        if took:
            print(f"{len(took)} steps {name}: median {statistics.median(took):.3f} s, {min(took):.3f} to {max(took):.3f} s")
    print(f"pauses between steps: {', '.join(f'{pause:.2f}' for pause in pauses)} s")
    if alone and beside:
        print(f"beside a save a step takes {statistics.median(beside) / statistics.median(alone):.2f} times as long")


if __name__ == "__main__":
    main()
