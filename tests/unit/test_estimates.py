"""Formulas of the plan to a large size, against values worked out by hand and against the real code."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from distill.decoding.trie import Trie
from distill.estimates import stages, students
from distill.estimates.failures import FAILURES_A_GPU_HOUR, Job, expect, simulate
from distill.estimates.hardware import HARDWARE, read_hardware
from distill.estimates.language_models import (
    MODELS,
    LanguageModel,
    activation_bytes,
    language_model,
    training_flops,
    training_state,
)
from distill.estimates.limits import first_to_break, limits
from distill.estimates.plan import make_plan
from distill.estimates.table import number, size
from distill.estimates.workload import Workload
from distill.runtime.config import CONFIGS, run
from distill.runtime.errors import UserError
from scripts import plan as command
from student.models import BACKBONES

SMALL = Workload(users=1e3, items=1e3, interactions=1e4)
TINY = LanguageModel(vocabulary=10, width=4, feed_forward=8, layers=2, heads=2, kv_heads=1)


# language models


def test_parameters_of_published_models():
    assert MODELS["llama-7b"].parameters() == 6_738_415_616
    assert MODELS["llama-13b"].parameters() == 13_015_864_320
    assert MODELS["llama-3-8b"].parameters() == 8_030_261_248
    assert MODELS["llama-70b"].parameters() == 68_976_648_192
    assert MODELS["smollm2-135m"].parameters() == 134_515_008


def test_a_tiny_model_by_hand():
    """Queries and output 4 x 4, keys and values 4 x 2, three maps of 4 x 8; two norms a layer and a last one, of 4."""
    layer = 2 * 16 + 2 * 8 + 3 * 32
    assert TINY.layer_products == 2 * layer
    assert TINY.parameters() == 2 * 10 * 4 + 2 * layer + 5 * 4
    assert TINY.parameters(codewords=3) == TINY.parameters() + 2 * 3 * 4
    assert TINY.in_products() == TINY.parameters() - 10 * 4
    assert replace(TINY, tied=True).parameters() == replace(TINY, tied=True).in_products() == TINY.parameters() - 40
    assert TINY.adapters(2) == 2 * 2 * (2 * (4 + 4) + 2 * (4 + 2) + 3 * (4 + 8))
    assert TINY.kv_bytes() == 2 * 2 * 1 * 2 * 2  # keys and values, layers, heads, width of a head, bytes
    assert MODELS["llama-7b"].kv_bytes() == 2 * 32 * 32 * 128 * 2 == 524_288
    assert MODELS["llama-70b"].kv_bytes() == 2 * 80 * 8 * 128 * 2 == 327_680


def test_training_flops():
    """6·N a token; adapters let the gradients of frozen weights out, 4·N."""
    n = MODELS["llama-7b"].in_products()
    assert training_flops(n, 0, 0, full=True, checkpointing=False) == 6 * n == 6 * (6_738_415_616 - 32_000 * 4096)
    assert training_flops(n, 0, 0, full=True, checkpointing=True) == 8 * n
    assert training_flops(100, 10, 5, full=False, checkpointing=False) == 400 + 60 + 10


def test_training_state_and_activations():
    """Full training in half precision: 2 + 2 + 12 bytes a parameter, divided by 8 GPUs under stage 3."""
    state = training_state(1e9, 1e9, 0, 3, 8, half=True)
    assert sum(state.values()) == 16e9 / 8
    assert sum(training_state(1e9, 1e9, 0, 0, 8, half=False).values()) == 16e9
    assert activation_bytes(TINY, 3, checkpointing=False) == 53.5 * 4 * 3 * 2
    assert activation_bytes(TINY, 3, checkpointing=True) == 2 * 4 * 3 * 2 + 53.5 * 4 * 3


def test_a_model_from_its_config():
    assert language_model(str(CONFIGS / "llama-7b/config.json")) == MODELS["llama-7b"]


def test_configs_that_are_none(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"vocab_size": 0, "hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 1,
                                "num_attention_heads": 1}))  # fmt: skip
    with pytest.raises(UserError, match="expected sizes of at least 1"):
        language_model(str(path))
    path.write_text("{}")
    with pytest.raises(UserError, match="no 'vocab_size'"):
        language_model(str(path))
    with pytest.raises(UserError, match="Missing file"):
        language_model(str(tmp_path / "none.json"))


# students


def test_sizes_are_the_networks():
    assert set(students.BACKBONES) == BACKBONES.keys()
    for name, (_, _, presets) in BACKBONES.items():
        assert students.PRESETS[name] == presets


@pytest.mark.parametrize("backbone", students.BACKBONES)
def test_parameters_of_students(backbone):
    """All but norms, start tokens and positions, which are less than 2%."""
    network, config, presets = BACKBONES[backbone]
    model = network(config(4, 256, **presets["small"]))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert 0.98 * total < students.student(backbone, "small", 4, 256).parameters() <= total


def test_multiplications_of_a_target():
    """docs/results/speed.md: on Instruments a target of tiger-4m costs 58 M, 19 M and 7 M multiplications."""
    costs = [students.student(name, "tiger-4m", 4, 256).target_products(5.5, 4.6 / 4) for name in students.BACKBONES]
    assert [round(cost / 1e6) for cost in costs] == [58, 19, 7]


def test_multiplications_of_a_list():
    """A causal student of one layer of width 2: 16 of attention, 12 of feed-forward; 3 codewords a level, 2 levels.

    Two items are four tokens; then the start and three beams at the one level that follows.
    """
    sizes = {"d_model": 2, "d_ff": 3, "heads": 1, "d_head": 2, "layers": 1}
    student = students.Student("causal", sizes, levels=2, codebook_size=3)
    assert student.list_products(history_items=2, beams=3) == 4 * 28 + (1 + 3) * (28 + 3 * 2)


# workload and stages


def test_targets_and_histories():
    """Six items a user: targets at positions 1 to 3, histories of 1 to 3 items, four training items."""
    workload = replace(SMALL, interactions=6e3)
    assert (workload.targets_a_user, workload.targets) == (3, 3000)
    assert workload.history_items == 2 and workload.items_a_target == 4 / 3
    assert replace(workload, max_history=2).history_items == (1 + 2 + 2) / 3


def test_flops_of_a_label():
    """docs/results/speed.md: SmolLM2-135M reads 75 beam tokens, 7 of the history, 80 rows of its head: 22 GFLOP."""
    workload = replace(SMALL, interactions=7e3)  # 5 training items, 4 targets: 5 tokens of history a target
    assert stages.label_tokens(workload, workload) == (5 + 75, 1 + 75 + 4)
    seven = replace(SMALL, interactions=1e3 * (3 + 4 / 3))  # 4 / 3 targets, 7 / 3 training items: 7 tokens a target
    tokens, rows = stages.label_tokens(seven, seven)
    assert tokens == pytest.approx(82) and rows == 80
    model = MODELS["smollm2-135m"]
    assert stages.label_flops(seven, seven, model) / 1e9 == pytest.approx(22, abs=0.2)


def test_vllm_requests():
    """76 requests of beams and 12 of distributions; a short prompt is read again by each, with two codewords."""
    workload = replace(SMALL, interactions=4e3, engine="vllm")  # one target after one item: 5 tokens with BOS
    assert stages.label_tokens(workload, workload) == (5 + 88 * (5 + 2), 88)


def test_bytes_of_the_trie():
    """The expectation over random IDs, against the real one; docs/results/speed.md has 160 MiB at 10^7 items."""
    codes = np.random.default_rng(0).integers(0, 256, (50_000, 4))
    trie = Trie.build(codes, 256)
    arrays = [*trie.offsets, *trie.codes, trie.leaf_of_item, trie.leaf_offsets, trie.leaf_items]
    assert stages.trie_bytes(50_000, 4, 256) == pytest.approx(sum(array.nbytes for array in arrays), rel=2e-3)
    assert stages.trie_bytes(1e7, 4, 256) / 2**20 == pytest.approx(160, abs=0.5)


def test_hours_and_money_of_embeddings():
    """10 items of 5 tokens through the products of a layer; 2 nodes of 4 GPUs, each reaching half of 1 TFLOP/s."""
    hardware = replace(
        read_hardware(),
        gpus_a_node=4,
        peak_tflops=1.0,
        inference_utilisation=0.5,
        node_price_hour=3.0,
        network_gbit_s=1e9,
    )
    workload = replace(SMALL, items=10, text_tokens=5)
    stage = stages.embed(workload, TINY, hardware, nodes=2)
    assert stage.flops == 2 * 288 * 10 * 5
    assert stage.hours == pytest.approx(stage.flops / (8 * 0.5e12) / 3600)
    assert stage.gpu_hours == pytest.approx(8 * stage.hours) and stage.money == pytest.approx(6 * stage.hours)
    assert stage.disk_bytes == 10 * 4 * 4 and stage.bound_by == "arithmetic"
    slow = stages.embed(workload, TINY, replace(hardware, network_gbit_s=1e-6), nodes=2)
    assert slow.bound_by == "network" and slow.hours > stage.hours


def test_tokens_of_the_teacher():
    """1,000 users with 8 training items, 7 targets, of histories of 4 items on average."""
    assert stages.teacher_tokens(SMALL) == pytest.approx(1000 * 8 * 4)
    assert stages.teacher_tokens(replace(SMALL, teacher_share=0.5, teacher_epochs=4)) == pytest.approx(2 * 32_000)
    assert stages.teacher_tokens(replace(SMALL, prompt="seqrec")) == pytest.approx(7000 * ((4 + 1) * 4 + 40))


def test_more_parameters_trained_cost_more():
    hardware = read_hardware()
    full, lora, qlora = (
        stages.tune(replace(SMALL, mode=mode), MODELS["llama-7b"], hardware, 1) for mode in ("full", "lora", "qlora")
    )
    assert full.flops > lora.flops == qlora.flops and full.memory_bytes > lora.memory_bytes
    assert full.memory_bytes > 16 * 6_738_415_616 / 8  # ZeRO-3 over eight GPUs
    assert 0.5 * 6_476_005_376 < qlora.memory_bytes < 8 * 2**30


def test_a_teacher_that_needs_two_gpus():
    """138 GB of weights on GPUs of 80 GiB, of which a fifth stays free."""
    hardware = read_hardware()
    assert stages.gpus_a_copy(MODELS["llama-7b"], hardware) == 1
    assert stages.gpus_a_copy(MODELS["llama-70b"], hardware) == 4


def test_every_process_reads_all_labels():
    """A million labelled targets on 8 and 512 GPUs: read by each, decoded by all together."""
    workload = replace(SMALL, users=1e5, interactions=1e5 * 13)
    student, hardware = students.student("nested", "demo", 4, 256), read_hardware()
    small, large = (stages.train_student(workload, student, hardware, nodes) for nodes in (1, 64))
    assert small.bound_by == large.bound_by == "input"
    assert small.hours * 3600 == pytest.approx(3.05 + 12.4 / 8) and large.hours * 3600 == pytest.approx(
        3.05 + 12.4 / 512
    )
    assert large.money > 30 * small.money
    assert large.network_bytes == pytest.approx(512 * 1e6 * 601)


# failures


def test_the_published_rate():
    """One GPU fails in 50,677 hours; 16,384 of them every 3.1 hours, as Meta reports."""
    hours = 1 / FAILURES_A_GPU_HOUR
    assert hours == pytest.approx(50_677, abs=1) and hours / 16_384 == pytest.approx(3.09, abs=0.01)


@pytest.mark.parametrize("rate", [0.02, 0.3, 2.0])
def test_simulation_and_formula(rate):
    job = Job(nodes=64, units=64 * 150, unit_hours=0.2, failure_rate=rate)
    simulated, expected = simulate(job, seed=0), expect(job)
    assert simulated.hours == pytest.approx(expected.hours, rel=0.03)
    noise = 4 / math.sqrt(expected.failures)  # four standard deviations of a count
    assert simulated.failures == pytest.approx(expected.failures, rel=noise)
    assert simulated.repeated_hours == pytest.approx(expected.repeated_hours, rel=2 * noise)
    assert simulated.down_hours == simulated.failures * job.restart_hours


def test_the_formula_by_hand():
    """λ·d = ln 2: each unit fails once on average, E = 1 / λ + R."""
    job = Job(nodes=2, units=10, unit_hours=math.log(2), failure_rate=1.0, restart_hours=0.5)
    expected = expect(job)
    assert expected.hours == pytest.approx(10 * 1.5 / 2) and expected.failures == pytest.approx(10)
    assert expected.repeated_hours == pytest.approx(10 * (1 - math.log(2)))


def test_without_failures():
    """Seven units on three nodes take three rounds."""
    job = Job(nodes=3, units=7, unit_hours=2.0, failure_rate=0.0)
    assert simulate(job).hours == job.ideal_hours == 6 and simulate(job).failures == 0
    assert expect(job).hours == 7 * 2 / 3


def test_smaller_units_lose_less():
    rate, work = 0.5, 64.0
    losses = [simulate(Job(8, units, work * 8 / units, rate), seed=1).repeated_hours for units in (64, 640, 6400)]
    assert losses[0] > 5 * losses[1] > 25 * losses[2] > 0


def test_the_same_seed_gives_the_same_failures():
    job = Job(nodes=4, units=200, unit_hours=0.5, failure_rate=0.3)
    assert simulate(job, seed=3) == simulate(job, seed=3) != simulate(job, seed=4)


def test_jobs_that_never_end():
    with pytest.raises(UserError, match="make the units smaller"):
        Job(nodes=1, units=1, unit_hours=100.0, failure_rate=1.0)
    with pytest.raises(UserError, match="at least one node"):
        Job(nodes=0, units=1, unit_hours=1.0, failure_rate=1.0)


# hardware, limits, the plan


def test_an_own_price(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("node_price_hour: 8\n")
    assert read_hardware(file) == replace(read_hardware(), node_price_hour=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node_price_hours: 8", "Unknown config key 'node_price_hours'. Did you mean 'node_price_hour'?"),
        ("gpus_a_node: -8", "--gpus_a_node is -8; expected a whole number of at least 1"),
        ("peak_tflops: .nan", "--peak_tflops is nan; expected a number above 0"),
        ("training_utilisation: 40", "--training_utilisation is 40; expected a number from 0 to 1"),
        ("training_utilisation: 0", "training_utilisation is 0; expected a share above 0"),
    ],
)
def test_hardware_that_cannot_be(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text + "\n")
    with pytest.raises(UserError) as error:
        read_hardware(file)
    assert message in str(error.value) and str(file) in str(error.value)


def test_hardware_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"No file .*copy configs/scale/hardware\.yaml"):
        read_hardware(tmp_path / "none.yaml")
    assert HARDWARE.is_file()


def test_what_breaks_first():
    """Nothing at 10^3; at 10^10 interactions lists with starts in 32 bits; a 70B model whatever the data."""
    hardware = read_hardware()
    assert first_to_break(limits(SMALL, MODELS["llama-7b"], hardware, 64)) is None
    large = Workload()
    first = first_to_break(limits(large, MODELS["llama-7b"], hardware, 64))
    assert first.what.startswith("32-bit starts") and first.load == pytest.approx(1e10 / (2**31 - 1))
    labels = {limit.where: limit for limit in limits(large, MODELS["llama-7b"], hardware, 64)}
    assert labels["distill/data/examples.py, TargetRanges"].load == pytest.approx(1e8 * (46 + 56) * 8 / 2**41)
    fixed = first_to_break(limits(SMALL, MODELS["llama-70b"], hardware, 64))
    assert fixed.what == "every GPU holds the whole base" and not fixed.grows
    full = {limit.what: limit for limit in limits(replace(SMALL, mode="full"), MODELS["llama-7b"], hardware, 1)}
    state = full["weights, gradients, optimiser and activations on every GPU"]
    assert state.load < 1 < replace(state, capacity=16 * 6.7e9 / 8).load  # ZeRO-3 over the node's eight GPUs
    wheres = {limit.where.split(",")[0] for limit in limits(large, MODELS["llama-7b"], hardware, 64)}
    assert all((CONFIGS.parent / where).is_file() for where in wheres)


def test_spot_machines_fail_more_and_cost_less():
    plan = make_plan(replace(SMALL, users=1e5, interactions=1e7), read_hardware(), nodes=4)
    reserved, spot = plan.failures
    assert spot.job.failure_rate == pytest.approx(reserved.job.failure_rate + 0.1)
    assert spot.expected.hours >= reserved.expected.hours
    assert spot.money < reserved.money
    assert reserved.job.unit_hours * reserved.job.units / 4 == pytest.approx(plan.stages[4].hours)


def test_sizes_in_words():
    assert [size(0), size(999), size(1536), size(2**40 * 1.5)] == ["", "999 B", "1.5 KiB", "1.5 TiB"]
    assert [number(0), number(0.001), number(12.34), number(1234.5)] == ["", "< .01", "12.3", "1,234"]


def test_the_command(tmp_path, capsys):
    file = tmp_path / "plan.json"
    sizes = {"users": "1e3", "items": "500", "interactions": "1e4", "teacher": "smollm2-135m", "nodes": "2"}
    words = [f"--{name}={value}" for name, value in sizes.items()]
    run(command.main, command.Config, argv=[*words, "--json", str(file)])
    printed = capsys.readouterr().out
    for text in ("1e+03 users, 500 items, 1e+04 interactions; 7e+03 training targets (100% labelled); 2 nodes of 8",
                 "semantic IDs", "teacher (lora)", "labels (hf)", "student (seq2seq)", "serving, a day",
                 "Nothing breaks at this size."):  # fmt: skip
        assert text in printed
    values = json.loads(file.read_text())
    stage = {stage["name"]: stage for stage in values["stages"]}
    assert stage["embeddings"]["disk_bytes"] == 500 * 576 * 4
    assert stage["data"]["hours"] == pytest.approx(1e4 * 19 / 1e7 / 3600)
    assert values["workload"]["items"] == 500 and values["first_to_break"] is None
    assert values["money"] == pytest.approx(sum(part["money"] for part in values["stages"][:-1]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--users -1", "--users is -1; expected a number above 0"),
        ("--items 0.5", "--items is 0.5; expected at least 1"),
        ("--users 1e300", "--users is 1e+300; expected at least 1 and at most 1e+15"),
        ("--interactions 3e8", "--interactions 3e+08 are 3 a user; expected at least 4"),
        ("--items 1e10", "are more than the 4.29497e+09 semantic IDs; raise --levels"),
        ("--levels 9", "--levels is 9; expected at most 8"),
        ("--codebook_size 40000", "--codebook_size is 40000; expected at most 32767"),
        ("--teacher lama-7b", "Unknown teacher 'lama-7b'. Did you mean 'llama-7b'?"),
        ("--preset huge", "Unknown preset 'huge'."),
        ("--label_share 0", "--label_share is 0; expected a share above 0"),
        ("--nodes 0", "--nodes is 0; expected a whole number of at least 1"),
        ("--json no/where/plan.json", "there is no folder no/where"),
    ],
)
def test_refusals(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        run(command.main, command.Config, argv=words.split())
    assert end.value.code == 2
    output = capsys.readouterr()
    assert message in output.err and not output.out
