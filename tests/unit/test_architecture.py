"""The house rules of docs/architecture.md, read from the sources: who may import whom, and what nobody may."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOUSE = ("distill", "teacher", "student", "scripts")
FILES = sorted(path for room in HOUSE for path in (ROOT / room).rglob("*.py"))
ENTRIES = {
    "teacher.finetune",
    "teacher.merge",
    "teacher.import_base",
    "teacher.import_lcrec",
    "student.train",
    "student.baseline",
    "distill.export_soft_labels",
}
DISTILL_ENTRY = "distill.export_soft_labels"  # the one place where distill reaches for teacher and student
STUDENT_ENTRY = "student.train"  # the one place where student reaches for a teacher, to ask it during the training
# extras: a plain install has none of them
HEAVY = ("vllm", "deepspeed", "bitsandbytes", "umap", "ray", "duckdb", "onnx", "onnxscript", "onnxruntime", "faiss")

# the packages and modules of distill/, in order: each may import those before it, and itself
DISTILL_ORDER = [
    "losses",
    "divergences",
    "list_losses",
    "metrics",
    "runtime",
    "estimates",
    "data",
    "ranking",
    "decoding",
    "baselines",
    "semantic_ids",
    "labels",
    "teachers",
    "evaluation",
    "export_soft_labels",
]
LEAVES = {"losses", "divergences", "metrics"}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TREES = {name_of(path): ast.parse(path.read_text(), str(path)) for path in FILES}


def only_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(tree, in_functions, for_types):
    """All nodes; functions' bodies and what is under TYPE_CHECKING on request."""
    for node in ast.iter_child_nodes(tree):
        if only_for_types(node) and not for_types:
            continue
        yield node
        if in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(node, in_functions, for_types)


def imports(name, in_functions=True, for_types=False):
    """Full names of the modules that a module imports; `from teacher import model` counts as teacher.model."""
    modules = set()
    for node in statements(TREES[name], in_functions, for_types):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: absolute imports only"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {full for full in inner if full in TREES} or {node.module}
    return modules


def rooms(name):
    return {module.split(".")[0] for module in imports(name)}


def inside(room):
    return [name for name in TREES if name.split(".")[0] == room]


def test_the_rules_see_the_house():
    assert TREES.keys() >= ENTRIES
    assert "distill.runtime.artifacts" in imports("distill.data.dataset")
    assert "teacher.model" in imports("teacher.engines")
    assert "teacher.engines.opening" in imports(DISTILL_ENTRY)
    assert {name.split(".")[1] for name in inside("distill") if "." in name} == set(DISTILL_ORDER)


@pytest.mark.parametrize(("room", "forbidden"), [("teacher", "student"), ("student", "teacher")])
def test_teacher_and_student_meet_only_in_files(room, forbidden):
    for name in inside(room):
        assert forbidden not in rooms(name) or name == STUDENT_ENTRY, name


def test_distill_imports_neither():
    for name in inside("distill"):
        allowed = {"teacher", "student"} if name == DISTILL_ENTRY else set()
        assert not rooms(name) & {"teacher", "student"} - allowed, name


def test_nobody_imports_entries():
    for name in TREES:
        assert "scripts" not in rooms(name), name
        if not name.startswith("scripts.benches."):  # these measure what a command does, by its config
            assert not imports(name) & ENTRIES, name


def test_order_within_distill():
    for name in inside("distill"):
        if "." not in name:
            continue
        room = name.split(".")[1]
        allowed = {room} | (set() if room in LEAVES else set(DISTILL_ORDER[: DISTILL_ORDER.index(room)]))
        imported = {module.split(".")[1] for module in imports(name) if module.startswith("distill.")}
        assert imported <= allowed, f"{name} imports {sorted(imported - allowed)}"


def test_no_cycles():
    """Imports for types alone count too: a module that needs another's types depends on it."""
    needs = {name: imports(name, for_types=True) & TREES.keys() - {name} for name in TREES}
    ready = set()
    while len(ready) < len(TREES):
        free = {name for name in TREES if name not in ready and needs[name] <= ready}
        assert free, f"these import each other in a circle: {sorted(TREES.keys() - ready)}"
        ready |= free


def test_extras_are_imported_where_they_are_used():
    for name in TREES:
        assert not {module.split(".")[0] for module in imports(name, in_functions=False)} & set(HEAVY), name


def test_no_path_edits_and_no_pickle():
    """One module reads pickles, by an unpickler that knows a few names; it never calls pickle's own."""
    plain = "distill.data.sources.numpy_objects"
    uses = {ast.unparse(node) for node in ast.walk(TREES[plain]) if isinstance(node, ast.Attribute)}
    assert {text for text in uses if text.startswith("pickle.")} == {"pickle.Unpickler"}  # the base class
    for name, tree in TREES.items():
        assert name == plain or not rooms(name) & {"pickle", "dill", "joblib", "cloudpickle"}, name
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert text not in ("sys.path", "torch.load", "torch.save"), f"{name} line {node.lineno}: {text}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", name


def test_models_are_loaded_in_one_place():
    """`distill.runtime.models` refuses code and pickle files of a model's folder; no other module may load one."""
    allowed = {
        ("teacher.lora", "PeftModel.from_pretrained"),  # an adapter, whose file is checked before
        ("distill.semantic_ids.embedders", "SentenceTransformer"),
        ("teacher.engines.vllm_start", "LLM"),
    }
    loaders = ("from_pretrained", "from_config", "SentenceTransformer", "LLM")
    for name in TREES.keys() - {"distill.runtime.models"}:
        for node in ast.walk(TREES[name]):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if call.split(".")[-1] not in loaders or call.split(".")[0] in ("Recommender", "ItemRecommender"):
                continue
            assert (name, call) in allowed, f"{name} line {node.lineno}: {call}"
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert call.startswith("Peft") or settings["trust_remote_code"] == "False", f"{name}: {call}"


def test_no_entry_shadows_a_library():
    """A script's own folder comes first on the path: scripts/datasets.py would be Hugging Face's `datasets`."""
    taken = {
        "datasets",
        "tokenizers",
        "transformers",
        "accelerate",
        "torch",
        "numpy",
        "tokenize",
        "types",
        "copy",
        "json",
    }
    for path in FILES:
        if path.parent == ROOT / "scripts" or name_of(path) in ENTRIES:
            siblings = {sibling.stem for sibling in path.parent.glob("*.py")}
            assert not siblings & taken, path
