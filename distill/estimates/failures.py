"""A job of many nodes on which nodes fail: a simulation, and the formula for its expectation.

Nodes take units of work from a queue, as the export's processes take shards. A node fails after a random time with an
exponential distribution; the unit that it was working on goes back into the queue, all of it, and the node works again
after a restart. Finished units are never lost: they are files with checksums.

The formula is the expected time of a task that starts again from its beginning after each failure (Daly, 2006):

    E = (1 / λ + R) · (exp(λ·d) − 1)

with failures λ an hour, units of d hours, and restarts of R hours, during which nothing fails. exp(λ·d) − 1 is the
expected number of failures of a unit.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from distill.runtime.errors import UserError

# Llama 3 (Meta, 2024, section 3.3.4): 419 unexpected interruptions in 54 days on 16,384 GPUs
FAILURES_A_GPU_HOUR = 419 / (16384 * 54 * 24)
# an assumption: the lowest of the hourly rates at which Bamboo (Thorpe et al., NSDI 2023) is evaluated
PREEMPTIONS_A_NODE_HOUR = 0.1
RESTART_HOURS = 0.25  # an assumption: a new node, its software, the teacher's weights
MOST_FAILURES_A_UNIT = 5.0  # λ·d beyond this would hardly ever end


@dataclass(frozen=True)
class Job:
    """A job of equal units of work.

    Attributes:
        nodes: that work.
        units: of work, such as shards.
        unit_hours: d, hours of a node for one unit.
        failure_rate: λ, failures of a node an hour.
        restart_hours: R, hours from a failure to the node's next unit.
    """

    nodes: int
    units: int
    unit_hours: float
    failure_rate: float
    restart_hours: float = RESTART_HOURS

    def __post_init__(self):
        if min(self.nodes, self.units) < 1 or self.unit_hours <= 0 or min(self.failure_rate, self.restart_hours) < 0:
            raise UserError(f"Expected at least one node and one unit, and times and rates above 0; got {self}.")
        if self.failure_rate * self.unit_hours > MOST_FAILURES_A_UNIT:
            raise UserError(
                f"A unit of {self.unit_hours:.3g} h at {self.failure_rate:.3g} failures an hour is hardly ever "
                "finished; make the units smaller."
            )

    @property
    def ideal_hours(self) -> float:
        """Hours without failures: whole rounds of units."""
        return -(-self.units // self.nodes) * self.unit_hours


@dataclass(frozen=True)
class Outcome:
    """How a job went.

    Attributes:
        hours: from the start to the last unit's end.
        failures: of all nodes.
        repeated_hours: node hours of work that was lost and done again.
        down_hours: node hours of restarts.
    """

    hours: float
    failures: float
    repeated_hours: float
    down_hours: float


def simulate(job: Job, seed: int = 0) -> Outcome:
    """Simulate a job event by event, in the order of time.

    When a node takes a unit its next failure is drawn anew, which is the same as drawing it once: the exponential
    distribution has no memory.
    """
    rng = np.random.default_rng(seed)
    waiting, finished, failures = job.units, 0, 0
    repeated, now = 0.0, 0.0
    events = [(0.0, node, "ready") for node in range(job.nodes)]
    idle: list[int] = []
    while finished < job.units:
        now, node, event = heapq.heappop(events)
        if event == "failed":
            failures, waiting = failures + 1, waiting + 1
            heapq.heappush(events, (now + job.restart_hours, node, "ready"))
            if idle:
                heapq.heappush(events, (now, idle.pop(), "ready"))
            continue
        finished += event == "finished"
        if not waiting:
            idle.append(node)
            continue
        waiting -= 1
        works = rng.exponential(1 / job.failure_rate) if job.failure_rate else math.inf
        if works < job.unit_hours:
            repeated += works
            heapq.heappush(events, (now + works, node, "failed"))
        else:
            heapq.heappush(events, (now + job.unit_hours, node, "finished"))
    return Outcome(now, failures, repeated, failures * job.restart_hours)


def expect(job: Job) -> Outcome:
    """Compute the expected outcome, without the wait for the last units at the end."""
    work = job.units * job.unit_hours
    if not job.failure_rate:
        return Outcome(work / job.nodes, 0.0, 0.0, 0.0)
    failures = job.units * math.expm1(job.failure_rate * job.unit_hours)
    down = failures * job.restart_hours
    repeated = (
        failures / job.failure_rate - work
    )  # E = failures · (1 / λ + R), of which the work itself is not repeated
    return Outcome((work + repeated + down) / job.nodes, failures, repeated, down)
