# SPDX-License-Identifier: Apache-2.0
"""Times contenders in turns, as `broadhead bench` does.

A machine's speed changes while it is measured, so what counts is the ratio of two samples that were taken one
after the other: each round takes a sample of ours before each one of the others. A sample is the median of a
short burst of runs, without its first: threads that slept wake up in that one.
"""

import collections
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable

BURST = 0.002
LEAST_RUNS = 2
MOST_RUNS = 32
#: A run of so many seconds is a sample by itself: what it takes to wake up does not show in it.
LONG = 0.05
WARM_UP = 0.2
LEAST_ROUNDS = 3
MOST_ROUNDS = 50
#: Rounds go on for up to so many times the budget while fewer than the least were quiet.
PATIENCE = 3
WATCH = 0.25
#: Threads of other libraries spin on for some 20 ms after a run, and would slow the next.
PEERS_REST = 0.05


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something whose time is taken: `run` does one step and answers seconds."""

    name: str
    kind: str  #: ours, limit or peer
    run: Callable[[], float]


def timed(name, kind, step):
    """A contender whose time is that of calling `step`."""

    def run():
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return Contender(name, kind, run)


#: seconds: median; times_ours: median ratio to ours just before
Timing = collections.namedtuple("Timing", "contender seconds times_ours samples disturbed")
_Round = collections.namedtuple("_Round", "pairs disturbed")


def _others_ticks():
    """Ticks of all processors that this process did not take; 0 where Linux does not say."""
    try:
        # user, nice, system, idle, iowait, irq, softirq, steal
        every = pathlib.Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
        # Behind the command and its parenthesis: state, 10 more, utime, stime.
        own = pathlib.Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(every[i]) for i in (0, 1, 2, 5, 6, 7)) - int(own[11]) - int(own[12])


def _rest(contender):
    if contender.kind == "peer":
        time.sleep(PEERS_REST)


def _warm_up(contender):
    spent, runs = 0.0, 0
    while runs < 2 or (spent < WARM_UP and runs < MOST_RUNS * MOST_ROUNDS):
        spent += contender.run()
        runs += 1
    _rest(contender)


def _sample(contender):
    first = contender.run()
    if first >= LONG:
        return first
    runs = max(LEAST_RUNS, min(MOST_RUNS, int(BURST / first)))
    return statistics.median(contender.run() for _ in range(runs))


def _watched_rounds(ours, others, most):
    """Rounds over so long that the work of others shows in the system's counters."""
    rounds, start, ticks = [], time.perf_counter(), _others_ticks()
    while len(rounds) < most and time.perf_counter() - start < WATCH:
        pairs = []
        for other in others:
            pairs.append((_sample(ours), _sample(other)))
            _rest(other)
        rounds.append(pairs)
    elapsed = time.perf_counter() - start
    # 8 % of a core at 100 ticks a second, and what rounding to ticks makes.
    disturbed = _others_ticks() - ticks > 2 + 0.08 * 100 * elapsed
    return [_Round(pairs, disturbed) for pairs in rounds]


def interleave(ours, others, budget):
    """Times `ours` beside each of `others` for about `budget` seconds; ours comes first in the answer."""
    for contender in (ours, *others):
        _warm_up(contender)
    rounds, start = [], time.perf_counter()
    while len(rounds) < MOST_ROUNDS:
        elapsed = time.perf_counter() - start
        quiet = sum(not one.disturbed for one in rounds)
        patience = PATIENCE if quiet < LEAST_ROUNDS else 1
        if len(rounds) >= LEAST_ROUNDS and elapsed > patience * budget:
            break
        rounds += _watched_rounds(ours, others, MOST_ROUNDS - len(rounds))
    quiet = [one for one in rounds if not one.disturbed]
    disturbed = len(quiet) < LEAST_ROUNDS
    used = [one.pairs for one in (rounds if disturbed else quiet)]
    own = [pair[0] for pairs in used for pair in pairs]
    timings = [Timing(ours, statistics.median(own), 1.0, len(own), disturbed)]
    for i, other in enumerate(others):
        timings.append(
            Timing(
                other,
                statistics.median(pairs[i][1] for pairs in used),
                statistics.median(pairs[i][1] / pairs[i][0] for pairs in used),
                len(used),
                disturbed,
            )
        )
    return timings
