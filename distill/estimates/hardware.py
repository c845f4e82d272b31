"""Machines and their prices: assumptions of a plan, read from YAML (`configs/scale/hardware.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt

from distill.runtime.config import CONFIGS, parse
from distill.runtime.errors import UserError

GIB = 2**30
HARDWARE = CONFIGS / "scale/hardware.yaml"

# dense bf16 peak in TFLOP/s with fp32 accumulation, and memory in GiB, from the makers' data sheets
GPUS = {
    "a100": (312.0, 80),
    "b200": (2250.0, 180),
    "h100": (989.0, 80),
    "h200": (989.0, 141),
    "l40s": (362.0, 48),
    "rtx4090": (165.0, 24),
}


@dataclass(frozen=True)
class Hardware:
    """Two kinds of machines, GPU nodes and CPU machines, with prices and the shares of their peaks that are reached."""

    gpu: str
    """Name of the GPU."""
    gpus_a_node: PositiveInt
    """GPUs of a GPU node."""
    peak_tflops: PositiveFloat
    """Dense bf16 peak of a GPU, TFLOP/s."""
    gpu_memory_gib: PositiveFloat
    """Memory of a GPU."""
    gpu_bandwidth_tb_s: PositiveFloat
    """Memory bandwidth of a GPU, 10^12 bytes/s."""
    node_memory_gib: PositiveFloat
    """Host memory of a GPU node."""
    node_cores: PositiveInt
    """Processor cores of a GPU node, as they are sold."""
    network_gbit_s: PositiveFloat
    """Network of a GPU node, 10^9 bits/s."""
    node_price_hour: NonNegativeFloat
    """A GPU node for an hour."""
    spot_discount: ClosedUnitInterval
    """Share that a GPU node which may be taken away costs less."""
    cpu_memory_gib: PositiveFloat
    """Memory of a CPU machine."""
    cpu_cores: PositiveInt
    """Cores of a CPU machine, as they are sold."""
    cpu_price_hour: NonNegativeFloat
    """A CPU machine for an hour."""
    core_gflops: PositiveFloat
    """Rate of a large float32 matrix product on a core, GFLOP/s."""
    storage_price_tb_month: NonNegativeFloat
    """10^12 bytes of object storage for a month."""
    currency: str
    """Of all prices."""
    prices_of: str
    """Date and source of the prices."""
    training_utilisation: ClosedUnitInterval
    """Share of the GPUs' peak that training a language model reaches."""
    inference_utilisation: ClosedUnitInterval
    """Share of the GPUs' peak that embedding and labelling reach."""
    student_utilisation: ClosedUnitInterval
    """Share of the GPUs' peak that training a student of a few million parameters reaches."""
    bandwidth_utilisation: ClosedUnitInterval
    """Share of memory and network bandwidth that is reached."""
    core_utilisation: ClosedUnitInterval
    """Share of `core_gflops` that a student's beam search reaches."""

    @property
    def peak_flops(self) -> float:
        """FLOP/s of a GPU."""
        return self.peak_tflops * 1e12

    @property
    def gpu_memory(self) -> float:
        """Bytes of a GPU."""
        return self.gpu_memory_gib * GIB

    @property
    def node_memory(self) -> float:
        """Bytes of a GPU node's host."""
        return self.node_memory_gib * GIB

    @property
    def cpu_memory(self) -> float:
        """Bytes of a CPU machine."""
        return self.cpu_memory_gib * GIB

    @property
    def network(self) -> float:
        """Bytes/s that a GPU node sends or receives, at the share that is reached."""
        return self.network_gbit_s * 1e9 / 8 * self.bandwidth_utilisation

    @property
    def gpu_bandwidth(self) -> float:
        """Bytes/s of a GPU's memory, at the share that is reached."""
        return self.gpu_bandwidth_tb_s * 1e12 * self.bandwidth_utilisation


def read_hardware(path: Path | None = None) -> Hardware:
    """Read the assumptions; what `path` does not say is that of `configs/scale/hardware.yaml`.

    Raises:
        UserError: unreadable file, unknown name, number out of range.
    """
    files = [HARDWARE] if path is None else [HARDWARE, path]
    if not files[-1].is_file():
        raise UserError(f"No file {files[-1]} with the hardware; copy {HARDWARE.relative_to(CONFIGS.parent)}.")
    try:
        hardware = parse(Hardware, argv=[word for file in files for word in ("--config", str(file))])
    except UserError as error:
        raise UserError(f"{files[-1]}: {error}") from None
    shares = [name for name in vars(hardware) if name.endswith("utilisation") and not getattr(hardware, name)]
    if shares:
        raise UserError(f"{files[-1]}: {shares[0]} is 0; expected a share above 0 and up to 1.")
    return hardware
