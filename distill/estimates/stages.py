"""What each stage of the pipeline takes: bytes, FLOPs, hours and money, as functions of the workload and the hardware.

Constants named *measured* are of this project's benchmarks, on the processors described in docs/results/speed.md; the
command is beside each. A stage's hours assume that arithmetic and transfers overlap: the slowest of them counts.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from distill.estimates.hardware import Hardware
from distill.estimates.language_models import (
    HALF,
    NF4,
    SINGLE,
    LanguageModel,
    activation_bytes,
    training_flops,
    training_state,
)
from distill.estimates.students import Student, variant_cost
from distill.estimates.workload import DataSize, TeacherPlan, Workload

# measured: `bench.py data`, 10 million interactions in 19 s and 1.0 GiB on two cores (docs/data.md)
PREPARE_SECONDS, PREPARE_BYTES = 19 / 1e7, 1.0 * 2**30 / 1e7
# measured: `bench.py ids --sample 16384`, a million items of 768 dimensions on one core (docs/semantic-ids.md)
QUANTISER_SECONDS, ENCODE_SECONDS, RESOLVE_SECONDS, QUANTISER_DIM = 160.0, 67e-6, 138e-6, 768
RESOLVE_BYTES = 0.9 * 2**30 / 1e6  # beyond the mapped embeddings
# measured: `bench.py labels`, encoding u8, with 16 candidates and 4 levels of 256 (docs/results/speed.md, "Export")
LABEL_BYTES, LABEL_LEVEL_BYTES, WRITE_TARGETS = 601, 515 / 4, 24_000
# measured: `bench.py scale`, a million targets in processor seconds (docs/results/speed.md, "Growth")
READ_SECONDS, DECODE_SECONDS = 3.05 / 1e6, (15.45 - 3.05) / 1e6
# measured: `bench.py export`, vLLM makes 88 requests a target with 25 beams and 4 levels, 76 of them for the beams
DISTRIBUTION_REQUESTS = 3  # a level
VLLM_BLOCK = 16  # tokens of a block of vLLM's prefix cache on GPUs, its default
PROMPT_TOKENS = 40  # words around the codewords of LC-Rec's prompts, about
TEXT_BYTES = 4  # of a token
INTERACTION_BYTES, ID_BYTES = 12, 14  # item number and time; the name of an item or user
DAY = 24.0  # hours


@dataclass(frozen=True)
class Stage:
    """What a stage takes.

    Attributes:
        name: of the stage.
        runs_on: the machines, in words.
        disk_bytes: what it writes.
        memory_bytes: of one GPU, or of the host where no GPU works.
        flops: floating-point operations.
        gpu_hours: hours of all GPUs that are rented.
        core_hours: hours of all cores that compute, where no GPU works.
        network_bytes: what all nodes receive from each other and from storage.
        hours: from start to end.
        money: in the hardware's currency.
        bound_by: what takes the hours: arithmetic, memory, network or input.
    """

    name: str
    runs_on: str
    disk_bytes: float
    memory_bytes: float
    flops: float
    gpu_hours: float
    core_hours: float
    network_bytes: float
    hours: float
    money: float
    bound_by: str


def prepare(size: DataSize, hardware: Hardware) -> Stage:
    """Estimate the preparation of the data: one process, all in memory."""
    hours = size.interactions * PREPARE_SECONDS / 3600
    texts = size.items * (size.text_tokens * TEXT_BYTES + ID_BYTES)
    disk = size.interactions * INTERACTION_BYTES + size.users * ID_BYTES + texts
    memory = size.interactions * PREPARE_BYTES + texts
    return Stage(
        "data", "1 machine", disk, memory, 0, 0, hours, 0, hours, hours * hardware.cpu_price_hour, "arithmetic"
    )


def embed(size: DataSize, model: LanguageModel, hardware: Hardware, nodes: int) -> Stage:
    """Estimate the items' embeddings: the teacher's base reads every item's text, and its states are averaged."""
    flops = 2 * model.layer_products * size.items * size.text_tokens
    disk = size.items * model.width * SINGLE
    weights = model.parameters() * HALF
    network = (weights + disk / nodes + size.items * size.text_tokens * TEXT_BYTES / nodes) * nodes
    seconds = {
        "arithmetic": flops / (nodes * hardware.gpus_a_node * hardware.peak_flops * hardware.inference_utilisation),
        "network": network / nodes / hardware.network,
    }
    # a batch of 8 texts of 2,048 tokens: inputs and outputs of the widest layer
    memory = weights + 8 * 2048 * HALF * (4 * model.width + 3 * model.feed_forward)
    return on_gpus("embeddings", disk, memory, flops, network, seconds, hardware, nodes)


def quantise(size: DataSize, dim: int, hardware: Hardware) -> Stage:
    """Estimate semantic IDs: residual k-means on a sample, all items encoded, collisions resolved; one core.

    The measured seconds are scaled by the dimensions. LC-Rec's RQ-VAE with its 10,000 epochs is another matter.
    """
    scale = dim / QUANTISER_DIM
    seconds = QUANTISER_SECONDS * scale + size.items * (ENCODE_SECONDS * scale + RESOLVE_SECONDS)
    hours = seconds / 3600
    flops = 2 * size.items * size.levels * size.codebook_size * dim
    disk = size.items * (size.levels * 2 + ID_BYTES)
    memory, money = size.items * RESOLVE_BYTES, hours * hardware.cpu_price_hour
    network = size.items * dim * SINGLE  # the embeddings are read
    return Stage("semantic IDs", "1 machine", disk, memory, flops, 0, hours, network, hours, money, "arithmetic")


def teacher_tokens(workload: Workload) -> float:
    """Count the tokens that the teacher is trained on in all epochs."""
    if workload.prompt == "stream":
        tokens = workload.targets * workload.items_a_target * workload.levels
    else:
        tokens = workload.targets * ((workload.history_items + 1) * workload.levels + PROMPT_TOKENS)
    return tokens * workload.teacher_share * workload.teacher_epochs


def tune(workload: Workload, model: LanguageModel, hardware: Hardware, nodes: int) -> Stage:
    """Estimate the teacher's fine-tuning: ZeRO-3 for all weights and LoRA, DDP for QLoRA, with checkpointing."""
    gpus = nodes * hardware.gpus_a_node
    codewords, full = workload.codewords, workload.mode == "full"
    total = model.parameters(codewords)
    adapters = 0 if full else model.adapters(workload.lora_rank)
    trained = total if full else adapters + model.codeword_rows(codewords)
    tokens = teacher_tokens(workload)
    flops = tokens * training_flops(model.in_products(codewords), adapters, 0, full, checkpointing=True)
    if workload.mode == "qlora":
        others = total - model.layer_products
        state = NF4 * model.layer_products + SINGLE * others + 16 * trained
        exchanged = 2 * SINGLE * trained
    else:
        state = sum(training_state(total + adapters, trained, 0, 3, gpus, half=True).values())
        exchanged = 2 * HALF * total + HALF * trained  # weights for both passes, gradients back
    batches = tokens / (gpus * workload.batch_tokens)  # of one GPU
    network = batches * exchanged * (1 - 1 / nodes) * nodes + nodes * total * HALF
    seconds = {
        "arithmetic": flops / (gpus * hardware.peak_flops * hardware.training_utilisation),
        "network": network / nodes / hardware.network,
    }
    memory = state + activation_bytes(model, workload.batch_tokens, checkpointing=True)
    disk = total * HALF + trained * (HALF + 12)  # the teacher, and a checkpoint of what trains
    return on_gpus(f"teacher ({workload.mode})", disk, memory, flops, network, seconds, hardware, nodes)


def label_tokens(size: DataSize, plan: TeacherPlan) -> tuple[float, float]:
    """Count, a target, the tokens that pass the layers and the rows of logits over the vocabulary.

    `hf`: the sequence once for all of its targets (`stream`) or a prompt a target, then all beams of all levels but the
    last; logits for the start, for each beam, and for each level of the target. `vllm`: a request a beam and level, and
    three a level for the distributions; each reads what is behind the prefix cache's last whole block, half a block.
    """
    beam_tokens = plan.width * (size.levels - 1)
    alone = size.history_items * size.levels + (PROMPT_TOKENS if plan.prompt == "seqrec" else 1)
    if plan.engine == "hf":
        history = size.items_a_target * size.levels if plan.prompt == "stream" else alone
        return history + beam_tokens, 1 + beam_tokens + size.levels
    requests = 1 + beam_tokens + DISTRIBUTION_REQUESTS * size.levels
    again = min(alone, VLLM_BLOCK / 2) + size.levels / 2
    return alone + requests * again, requests


def label_flops(size: DataSize, plan: TeacherPlan, model: LanguageModel) -> float:
    """Count the FLOPs of one target's labels."""
    tokens, rows = label_tokens(size, plan)
    return 2 * (model.layer_products * tokens + (model.vocabulary + size.codewords) * model.width * rows)


def gpus_a_copy(model: LanguageModel, hardware: Hardware) -> int:
    """Count the GPUs that one copy of the teacher needs in half precision: a power of two, a fifth kept free."""
    gpus = 1
    while model.parameters() * HALF > 0.8 * gpus * hardware.gpu_memory:
        gpus *= 2
    return gpus


def export(workload: Workload, model: LanguageModel, hardware: Hardware, nodes: int) -> Stage:
    """Estimate the soft labels: beam candidates and teacher-forced distributions of the labelled targets."""
    targets, copy = workload.targets * workload.label_share, gpus_a_copy(model, hardware)
    gpus = nodes * hardware.gpus_a_node
    weights = model.parameters(workload.codewords) * HALF
    flops = targets * label_flops(workload, workload, model)
    batches = targets / workload.label_batch / (gpus / copy)  # of one copy
    passes = batches * workload.levels * (1 if workload.engine == "hf" else 2)
    disk = targets * label_bytes(workload)
    network = nodes * (weights + workload.interactions * INTERACTION_BYTES) + disk
    seconds = {
        "arithmetic": flops / (gpus * hardware.peak_flops * hardware.inference_utilisation),
        "memory": passes * weights / copy / hardware.gpu_bandwidth,
        "network": network / nodes / hardware.network,
        "input": targets / WRITE_TARGETS / (nodes * hardware.node_cores),
    }
    tokens = workload.history_items * workload.levels + workload.width * workload.levels
    memory = (weights + workload.label_batch * tokens * model.kv_bytes()) / copy
    return on_gpus(f"labels ({workload.engine})", disk, memory, flops, network, seconds, hardware, nodes)


def label_bytes(size: DataSize) -> float:
    """Bytes of a target's labels on disk, encoding u8."""
    other_columns = LABEL_BYTES - 4 * LABEL_LEVEL_BYTES
    return other_columns + size.levels * LABEL_LEVEL_BYTES * size.codebook_size / 256


def train_student(workload: Workload, student: Student, hardware: Hardware, nodes: int) -> Stage:
    """Estimate a student's training. Every process reads all labels and decodes its share.

    Every process also lays out all batches, which has not been measured and is not counted.
    """
    gpus = nodes * hardware.gpus_a_node
    targets = workload.targets * workload.label_share * workload.student_epochs
    products = student.target_products(workload.history_items, workload.items_a_target)
    flops = 6 * products * targets * variant_cost(workload.variant, student.backbone)
    labelled = workload.variant != "tiger"
    network = gpus * targets * label_bytes(workload) if labelled else nodes * workload.interactions * INTERACTION_BYTES
    seconds = {
        "arithmetic": flops / (gpus * hardware.peak_flops * hardware.student_utilisation),
        "network": network / nodes / hardware.network,
        "input": targets * (READ_SECONDS + DECODE_SECONDS / gpus) if labelled else 0.0,
    }
    memory = 16 * student.parameters()
    disk = SINGLE * student.parameters()
    name = f"student ({student.backbone})"
    return on_gpus(name, disk, memory, flops, network, seconds, hardware, nodes)


def serve(workload: Workload, student: Student, hardware: Hardware) -> Stage:
    """Estimate a day of serving on CPU machines; memory is of one copy: student and trie."""
    lists = workload.users * workload.lists_a_user
    flops = 2 * student.list_products(workload.history_items, workload.beams) * lists
    cores = flops * workload.peak_factor / (DAY * 3600) / (hardware.core_gflops * 1e9 * hardware.core_utilisation)
    machines = -(-cores // hardware.cpu_cores)
    memory = SINGLE * student.parameters() + trie_bytes(workload.items, workload.levels, workload.codebook_size)
    money = machines * DAY * hardware.cpu_price_hour
    runs_on = f"{machines:,.0f} machine{'s' if machines > 1 else ''}"
    return Stage("serving, a day", runs_on, 0, memory, flops, 0, cores * DAY, 0, DAY, money, "arithmetic")


def trie_bytes(items: float, levels: int, codebook_size: int) -> float:
    """Expect the bytes of `distill.decoding.trie.Trie` over random IDs, without the tables of the first levels."""
    code = 1 if codebook_size <= 1 << 8 else 2 if codebook_size <= 1 << 15 else 4
    nodes = [1.0]
    for level in range(1, levels + 1):
        prefixes = float(codebook_size) ** level
        nodes.append(-prefixes * math.expm1(-items / prefixes))
    inner = sum(4 * (above + 1) + code * below for above, below in itertools.pairwise(nodes))
    return inner + 4 * (items + nodes[-1] + 1 + items)


def on_gpus(
    name: str,
    disk: float,
    memory: float,
    flops: float,
    network: float,
    seconds: dict[str, float],
    hardware: Hardware,
    nodes: int,
) -> Stage:
    """Build a stage that all GPU nodes work on; the largest of `seconds` is its time."""
    bound_by = max(seconds, key=lambda part: seconds[part])
    hours = seconds[bound_by] / 3600
    gpu_hours, money = hours * nodes * hardware.gpus_a_node, hours * nodes * hardware.node_price_hour
    runs_on = f"{nodes} node{'s' if nodes > 1 else ''}"
    return Stage(name, runs_on, disk, memory, flops, gpu_hours, 0, network, hours, money, bound_by)


def storage_a_month(stages: list[Stage], hardware: Hardware) -> float:
    """Price of keeping all that the stages write for a month."""
    return sum(stage.disk_bytes for stage in stages) / 1e12 * hardware.storage_price_tb_month
