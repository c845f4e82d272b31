"""Load a base on this process of a launch, and write what the process holds of it: load_base.py BASE FOLDER."""

import sys
from pathlib import Path

import torch
from deepspeed import zero

from distill.runtime.accelerator import accelerator
from distill.runtime.artifacts import write_json
from distill.runtime.sharding import sharded_loading, unsharded
from teacher.base_model import load_base, token_tables, unshard_token_tables

base, folder = sys.argv[1], Path(sys.argv[2])
acc = accelerator()
with unsharded(acc):
    torch.manual_seed(0)
    with sharded_loading(acc):
        model = load_base(base)
        unshard_token_tables(model)
    drawn = torch.rand(()).item()
    expected = load_base(base).state_dict()
facts = {"random_number": drawn, "tables": [list(table.shape) for table in token_tables(model)], "held": {}}
for name, parameter in model.named_parameters():
    is_shard = hasattr(parameter, "ds_id")
    facts["held"][name] = parameter.ds_tensor.numel() if is_shard else parameter.numel()
    with zero.GatheredParameters([parameter] if is_shard else []):
        assert torch.equal(parameter, expected[name]), name
write_json(folder / f"{acc.process_index}.json", facts)
acc.wait_for_everyone()
acc.end_training()
