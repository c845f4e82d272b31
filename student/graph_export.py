"""Write a student's search or scores as one graph: for ONNX Runtime, or compiled ahead of time by AOTInductor."""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from distill.runtime.artifacts import write_json
from distill.runtime.errors import UserError
from student.config import GraphFormat
from student.graphs import FILES
from student.onnx_decompositions import DECOMPOSITIONS
from student.search_graph import ScoreGraph, SearchGraph, capture


def write_export(graph: SearchGraph, folder: Path, graph_format: GraphFormat, batch: int | None = None) -> None:
    """Write the graph, items.json (ids and titles by item number) and export.json (what the graph takes and returns).

    Args:
        graph: the search.
        folder: an empty folder.
        graph_format: what runs it.
        batch: users of every call; None: any number.

    Raises:
        UserError: the extra `export` or a C++ compiler is missing.
    """
    check_tools(graph_format)
    versions = write_graph(graph, folder, graph_format, batch)
    student = graph.student
    write_json(folder / "items.json", {"item_ids": student.item_ids, "titles": student.titles})
    users = batch or "users"
    lengths = {"recent": f"1 to {student.max_history}", "bought": "any"}
    facts = {name: student.facts[name] for name in ("backbone", "variant", "scope", "seed") if name in student.facts}
    description = {
        "format": graph_format,
        "file": FILES[graph_format],
        "inputs": {name: {"dtype": "int64", "shape": [users, lengths[name]]} for name in graph.inputs},
        "outputs": {
            name: {"dtype": dtype, "shape": [users, graph.k]}
            for name, dtype in zip(graph.outputs, ("int64", "float32"), strict=True)
        },
        "k": graph.k,
        "width": graph.width,
        "max_history": student.max_history,
        "exclude_bought": graph.exclude_bought,
        "n_items": student.n_items,
        "student": facts,
        "versions": {"torch": torch.__version__, **versions},
    }
    write_json(folder / "export.json", description)


@torch.no_grad()  # with gradients the attention is decomposed to operators of other strides, which its views refuse
def write_graph(
    graph: SearchGraph | ScoreGraph, folder: Path, graph_format: GraphFormat, batch: int | None = None
) -> dict[str, Any]:
    """Write the graph's file, one of `FILES`, alone; arguments as for `write_export`.

    Returns:
        Versions of what wrote it.
    """
    program = capture(graph, batch)
    path = folder / FILES[graph_format]
    if path.suffix == ".pt2":
        return _write_aoti(program, path)
    versions = _write_onnx(program, graph, path)
    return versions | (_round_to_int8(path) if graph_format == "onnx-int8" else {})


def check_tools(graph_format: GraphFormat) -> None:
    """Check that what writes the format is installed, before any work.

    Raises:
        UserError: it is not.
    """
    if graph_format.startswith("onnx"):
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401

            if graph_format == "onnx-int8":
                import onnxruntime.quantization  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(f"ONNX needs {error.name}: pip install 'lohrec-distill[export]'.") from None
        return
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise UserError(
            "AOTInductor needs a C++ compiler, and there is none: install g++ or clang++, or name one by the "
            "environment's CXX."
        ) from None


def _write_onnx(program: ExportedProgram, graph: SearchGraph | ScoreGraph, path: Path) -> dict[str, Any]:
    """Write an ONNX file without traces of the sources; return versions."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every package that it could also have used
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.onnx.export(
            program.run_decompositions(DECOMPOSITIONS),
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamo=True,
            verbose=False,
        )
    for node in model.model.graph.all_nodes():
        node.metadata_props.clear()  # paths and lines of the sources
    model.save(path)
    return {
        "opset": model.model.opset_imports[""],
        **{name: importlib.metadata.version(name) for name in ("onnx", "onnxscript")},
    }


def _round_to_int8(path: Path) -> dict[str, Any]:
    """Replace an ONNX file's products with weights by products of int8 numbers; return versions."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(path, path, skip_symbolic_shape=True)
    quantize_dynamic(path, path, weight_type=QuantType.QInt8)
    return {"onnxruntime": importlib.metadata.version("onnxruntime")}


def _write_aoti(program: ExportedProgram, path: Path) -> dict[str, Any]:
    """Compile ahead of time for this processor and write a package for `torch._inductor.aoti_load_package`."""
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return {}
