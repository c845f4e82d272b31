"""Before any test: offline, one thread, and the package under test is this checkout's."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read by Hugging Face's libraries when they are first imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NUMBA_DISABLE_JIT"] = "1"  # ranx would compile for a minute what runs in a moment

import torch

import distill

ROOT = Path(__file__).resolve().parents[1]

# a plain `pip install .` leaves a copy that would be tested in place of the sources
assert Path(distill.__file__).resolve().is_relative_to(ROOT), f"distill comes from {distill.__file__}, not {ROOT}"

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other
