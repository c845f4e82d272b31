"""The plan: all stages at a size, the export's failures, and what breaks first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from distill.estimates import stages as estimates
from distill.estimates.failures import (
    FAILURES_A_GPU_HOUR,
    PREEMPTIONS_A_NODE_HOUR,
    RESTART_HOURS,
    Job,
    Outcome,
    expect,
    simulate,
)
from distill.estimates.hardware import Hardware
from distill.estimates.language_models import language_model
from distill.estimates.limits import Limit, first_to_break, limits
from distill.estimates.stages import Stage
from distill.estimates.students import student
from distill.estimates.workload import Workload, check

SHARD_ROWS = 4096  # targets of a shard, the export's default
MOST_UNITS = 1_000_000  # that are simulated one by one


@dataclass(frozen=True)
class Failures:
    """The export on machines that fail.

    Attributes:
        machines: in words.
        job: what was simulated; a unit is a shard on every copy of the teacher in a node.
        simulated: one run of the simulation.
        expected: by the formula.
        money: of the nodes for the simulated hours.
    """

    machines: str
    job: Job
    simulated: Outcome
    expected: Outcome
    money: float


@dataclass(frozen=True)
class Plan:
    """All that is known about a workload on a hardware.

    Attributes:
        workload, hardware, nodes: what was planned.
        stages: in the order of the pipeline; the last is a day of serving.
        failures: the export on reserved and on spot machines.
        limits: the toolkit's present limits, in the order of the pipeline.
        storage_a_month: price of keeping everything that is written.
    """

    workload: Workload
    hardware: Hardware
    nodes: int
    stages: list[Stage]
    failures: list[Failures]
    limits: list[Limit]
    storage_a_month: float

    @property
    def first(self) -> Limit | None:
        """The limit that breaks first as the data grow; None: none does."""
        return first_to_break(self.limits)

    @property
    def money(self) -> float:
        """Price of all stages but serving."""
        return sum(stage.money for stage in self.stages[:-1])

    def as_dict(self) -> dict[str, Any]:
        """Turn everything into JSON's types."""
        planned = {item.name: getattr(self.workload, item.name) for item in fields(Workload)}  # not a command's options
        values = asdict(replace(self, workload=Workload(**planned)))
        values |= {"first_to_break": asdict(self.first) if self.first else None, "money": self.money}
        for record, limit in zip(values["limits"], self.limits, strict=True):
            record["load"] = limit.load
        return values


def make_plan(workload: Workload, hardware: Hardware, nodes: int, seed: int = 0) -> Plan:
    """Estimate all stages.

    Args:
        workload: what is planned.
        hardware: assumptions about machines and prices.
        nodes: GPU nodes for embeddings, teacher and labels.
        seed: of the simulated failures.

    Raises:
        UserError: sizes that no data set has; an unknown teacher or student.
    """
    check(workload)
    model = language_model(workload.teacher)
    network = student(workload.backbone, workload.preset, workload.levels, workload.codebook_size)
    stages = [
        estimates.prepare(workload, hardware),
        estimates.embed(workload, model, hardware, nodes),
        estimates.quantise(workload, model.width, hardware),
        estimates.tune(workload, model, hardware, nodes),
        estimates.export(workload, model, hardware, nodes),
        estimates.train_student(workload, network, hardware, workload.student_nodes),
        estimates.serve(workload, network, hardware),
    ]
    labels = stages[4]
    failures = [
        fail("reserved", labels, workload, hardware, nodes, 0.0, hardware.node_price_hour, seed),
        fail(
            "spot",
            labels,
            workload,
            hardware,
            nodes,
            PREEMPTIONS_A_NODE_HOUR,
            hardware.node_price_hour * (1 - hardware.spot_discount),
            seed,
        ),
    ]
    storage = estimates.storage_a_month(stages, hardware)
    return Plan(workload, hardware, nodes, stages, failures, limits(workload, model, hardware, nodes), storage)


def fail(
    machines: str,
    labels: Stage,
    workload: Workload,
    hardware: Hardware,
    nodes: int,
    preemptions: float,
    price: float,
    seed: int,
) -> Failures:
    """Simulate the export with failures.

    Args:
        machines: in words.
        labels: the stage without failures.
        workload, hardware, nodes: as in `make_plan`.
        preemptions: of a node an hour, beside its GPUs' failures.
        price: of a node for an hour.
        seed: of the simulation.
    """
    targets = workload.targets * workload.label_share
    copies = max(hardware.gpus_a_node // estimates.gpus_a_copy(language_model(workload.teacher), hardware), 1)
    units = min(max(int(targets / SHARD_ROWS / copies), nodes), MOST_UNITS)
    rate = hardware.gpus_a_node * FAILURES_A_GPU_HOUR + preemptions
    job = Job(nodes, units, labels.hours * nodes / units, rate, RESTART_HOURS)
    outcome = simulate(job, seed)
    return Failures(machines, job, outcome, expect(job), outcome.hours * nodes * price)
