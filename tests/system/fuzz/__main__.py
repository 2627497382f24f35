"""The command `python -m tests.system.fuzz`: many examples for every reader, and the growth of memory.

The examples come in rounds, each with a seed. Seeds are appended to `.fuzz/seeds.txt`, and a failing example
is written to `.fuzz/failures/`, with the command that repeats its round. Hypothesis also saves the example
itself in `.fuzz/examples`, so the next call begins with it. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import psutil

from tools.airflow_settings import own_environment

FOLDER = Path(__file__).parents[3] / ".fuzz"
ROUND_EXAMPLES = 500
MAX_GROWTH_MIB = 50.0
WARM_UP_ROUNDS = 1  # in which modules are imported, and caches of a bounded size are filled


def main(argv: Sequence[str] | None = None) -> int:
    """Run the examples, print the result, and return the exit code."""
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as home:
        # before the first import of Airflow, which would use the developer's own
        os.environ.update(own_environment(Path(home), Path(home)))
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    from tests.support.fuzz import READERS

    unknown = set(options.reader) - READERS.keys()
    if unknown:
        _print(f"No reader is called {', '.join(sorted(unknown))}; there are: {', '.join(READERS)}")
        return 2
    names = options.reader or list(READERS)
    per_round = min(ROUND_EXAMPLES, -(-options.examples // len(names)))
    rounds = WARM_UP_ROUNDS + -(-options.examples // (per_round * len(names)))
    if options.seed is not None:
        per_round, rounds = options.examples, 1
    started, failures, count, memory = time.monotonic(), 0, 0, 0.0
    for number in range(rounds):
        seed = options.seed if options.seed is not None else secrets.randbelow(2**32)
        for name in names:
            failures += not _run_round(name, seed, per_round)
            count += per_round
        if number < WARM_UP_ROUNDS:
            memory = _memory_mib()
        growth = _memory_mib() - memory
        _print(f"round {number + 1} of {rounds}: {count} examples, {failures} failures, {growth:+.1f} MiB")
    growth = _memory_mib() - memory
    seconds = time.monotonic() - started
    _print(
        f"{count} examples for {len(names)} readers in {seconds:.0f} s: {failures} failures; memory grew by "
        f"{growth:.1f} MiB after the first round (at most {MAX_GROWTH_MIB:.0f})"
    )
    return 1 if failures or growth > MAX_GROWTH_MIB else 0


def _run_round(name: str, seed: int, examples: int) -> bool:
    """Run the examples of one seed for one reader; return whether all went well."""
    import hypothesis
    from hypothesis.database import DirectoryBasedExampleDatabase

    from tests.support.fuzz import READERS

    FOLDER.mkdir(exist_ok=True)
    configure = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=DirectoryBasedExampleDatabase(FOLDER / "examples"),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    reader = READERS[name]

    def check(example: object) -> None:
        reader.check(example)

    # by which Hypothesis finds its saved examples
    check.__qualname__ = check.__name__ = "check_" + re.sub(r"\W", "_", name)
    error = None
    try:
        configure(hypothesis.seed(seed)(hypothesis.given(reader.examples)(check)))()
    except Exception as found:  # noqa: BLE001  # whatever came out of the reader is the finding
        error = found
    with (FOLDER / "seeds.txt").open("a") as seeds:
        seeds.write(f"{name}\t{seed}\t{examples}\t{'failed' if error else 'passed'}\n")
    if error is None:
        return True
    replay = f"make fuzz FUZZ_ARGS=\"--reader '{name}' --seed {seed} --examples {examples}\""
    file = FOLDER / "failures" / f"{check.__name__}-{seed}.txt"
    file.parent.mkdir(exist_ok=True)
    text = "".join(traceback.format_exception(error))
    file.write_text(f"{replay}\n\n{text}", errors="backslashreplace")
    _print(f"{name}: {type(error).__name__}: {error}\n  the example: {file}\n  replay: {replay}")
    return False


def _memory_mib() -> float:
    """Return the memory of this process, without what can be freed."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1024**2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.system.fuzz", description=__doc__)
    parser.add_argument(
        "--examples", type=int, default=100_000, help="of all readers together (default: %(default)s)"
    )
    parser.add_argument("--reader", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, help="repeat one round, with --examples for each reader")
    return parser


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
