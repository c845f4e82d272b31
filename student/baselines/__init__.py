"""Baselines that score items directly, without semantic IDs: name -> (network, its sizes)."""

from student.baselines.gru4rec import GRU4Rec, GRUConfig
from student.baselines.sasrec import SASRec, SASRecConfig

NETWORKS = {"sasrec": (SASRec, SASRecConfig), "gru4rec": (GRU4Rec, GRUConfig)}
