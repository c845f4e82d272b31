"""The commands' configs, each as a YAML file with all of its fields."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from distill.evaluation.reproduction.config import Config as ReproduceConfig
from distill.export_soft_labels import Config as ExportConfig
from scripts import (
    ablate_ids,
    add_memory,
    audit,
    build_semantic_ids,
    compare,
    embed_items,
    evaluate,
    export_dataset,
    prepare_data,
    recommend,
    report,
    represent_items,
)
from student.config import BaselineConfig
from student.config import Config as StudentConfig
from student.search_config import Config as SearchConfig
from teacher import import_base, import_lcrec, merge
from teacher.config import Config as TeacherConfig

from .fuzz_contract import Files


def config_file(config_class: type) -> Files:
    """Write the defaults of a config as YAML, one field a line; required fields get a text that may stand there."""
    lines = []
    for field in dataclasses.fields(config_class):
        value: Any = "lcrec"
        if field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        lines.append(f"{field.name}: {json.dumps(value, default=str)}\n")
    return {"config.yaml": "".join(lines).encode()}


COMMANDS: dict[str, tuple[type, Callable[[], Files]]] = {
    name: (config_class, partial(config_file, config_class))
    for name, config_class in {
        "prepare_data": prepare_data.Config,
        "embed_items": embed_items.Config,
        "build_semantic_ids": build_semantic_ids.Config,
        "finetune": TeacherConfig,
        "merge": merge.Config,
        "import_base": import_base.Config,
        "import_lcrec": import_lcrec.Config,
        "export_soft_labels": ExportConfig,
        "train": StudentConfig,
        "baseline": BaselineConfig,
        "add_memory": add_memory.Config,
        "evaluate": evaluate.Config,
        "compare": compare.Config,
        "report": report.Config,
        "audit": audit.Config,
        "ablate_ids": ablate_ids.Config,
        "export_dataset": export_dataset.Config,
        "recommend": recommend.Config,
        "represent_items": represent_items.Config,
        "search": SearchConfig,
        "reproduce": ReproduceConfig,
    }.items()
}
