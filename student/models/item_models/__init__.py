"""Networks that score items directly, without semantic IDs."""

from student.models.item_models.gru4rec import GRU4Rec, GRUConfig
from student.models.item_models.sasrec import SASRec, SASRecConfig

ITEM_MODELS = {"sasrec": (SASRec, SASRecConfig), "gru4rec": (GRU4Rec, GRUConfig)}  # name -> (network, its sizes)
