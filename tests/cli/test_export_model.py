"""The real command of export_model.py: what it refuses, without a trace and with nothing written."""

import subprocess
import sys

from cli.by_command import ROOT

WITHOUT = (
    "import runpy, sys\nsys.modules['onnxscript'] = None\n"
    "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
)


def export(*words):
    command = [sys.executable, "-c", WITHOUT, ROOT / "scripts/export_model.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_the_extra_is_named(tmp_path):
    code, error = export("--student", tmp_path, "--output", tmp_path / "new")
    assert code == 2 and "ONNX needs onnxscript: pip install 'lohrec-distill[export]'." in error
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_stays(tmp_path):
    (tmp_path / "kept").touch()
    code, error = export("--student", tmp_path, "--output", tmp_path)
    assert code == 2 and "exists and is not empty" in error
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
