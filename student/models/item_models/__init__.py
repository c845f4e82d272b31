"""Networks that score items directly, without semantic IDs."""

from student.models.item_models.dreamrec import DreamRec, DreamRecConfig
from student.models.item_models.e4srec import E4SRec, E4SRecConfig
from student.models.item_models.fmlp import FMLPConfig, FMLPRec
from student.models.item_models.gru4rec import GRU4Rec, GRUConfig
from student.models.item_models.lite_llm4rec import LiteLLM4Rec, LiteLLM4RecConfig
from student.models.item_models.sasrec import SASRec, SASRecConfig
from student.models.setrec import SETRec, SETRecConfig

ITEM_MODELS = {  # name -> (network, its sizes)
    "sasrec": (SASRec, SASRecConfig),
    "gru4rec": (GRU4Rec, GRUConfig),
    "fmlp": (FMLPRec, FMLPConfig),
    "lite-llm4rec": (LiteLLM4Rec, LiteLLM4RecConfig),
    "dreamrec": (DreamRec, DreamRecConfig),
    "e4srec": (E4SRec, E4SRecConfig),
    "setrec": (SETRec, SETRecConfig),
}
