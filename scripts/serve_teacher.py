"""Answer students that distil on-policy: the teacher's codeword distributions along IDs which they propose.

    python scripts/serve_teacher.py --run runs/demo --port 8001
    accelerate launch student/train.py --variant distill --on_policy 0.5 --teacher_url http://127.0.0.1:8001

Several students may ask one teacher. Listens on this machine alone unless --host says otherwise, and asks nobody for a
key: outside of it, put it behind a private network. Needs the extra `serve`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import NonNegativeInt

from distill.data.dataset import Dataset
from distill.labels.config import EngineSettings
from distill.runtime import artifacts
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.runtime.listening import listen
from distill.semantic_ids.ids import SemanticIDs
from distill.semantic_ids.lineage import adopt_teacher
from distill.teachers.forced import EngineTeacher


@dataclass(frozen=True)
class Config(EngineSettings):
    """Serve a teacher: python scripts/serve_teacher.py [--run RUN] [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact (default: RUN/semantic_ids)."""
    teacher: Path | None = None
    """Teacher artifact (default: RUN/teacher)."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: NonNegativeInt = 8001
    """Port; 0: any free port."""


def main(config: Config) -> None:
    """Load the teacher, listen until a signal comes."""
    try:
        import uvicorn

        from distill.teachers.server import create_app
    except ModuleNotFoundError as error:
        raise UserError(f"The server needs {error.name}: pip install 'lohrec-distill[serve]'.") from None
    from teacher.engines.opening import open_engine

    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    codes = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    teacher = artifacts.read(config.teacher or config.run / "teacher", "teacher")
    artifacts.check_agreement(data, codes, adopt_teacher(teacher, codes))
    dataset = Dataset.load(data.folder)
    ids = SemanticIDs.load(codes.folder, dataset.n_items)
    engine = open_engine(config, dataset, ids, teacher.folder)
    facts = {"teacher": teacher.fingerprint, "semantic_ids": codes.fingerprint, "levels": ids.levels,
             "codebook_size": ids.codebook_size}  # fmt: skip
    app = create_app(EngineTeacher(engine, config.batch_size), facts, dataset.n_items)
    listener = listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    print(f"Serving {teacher.folder} on http://{host}:{port}", flush=True)
    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=30)
    uvicorn.Server(settings).run(sockets=[listener])


if __name__ == "__main__":
    run(main, Config)
