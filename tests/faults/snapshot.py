"""What lies in a folder, as hashes, with the declared exceptions: the time and cost of a run."""

import hashlib
import json
from pathlib import Path

# of a manifest: when, how long, how much memory, and the state of the sources, which may change during a soak
NOT_COMPARED = ("created", "seconds", "peak_mib", "commit", "checksum")
TIMED = {"metrics.json": "users_per_s"}  # of an evaluation: file -> a time in each row
LOGS = "logs"  # TensorBoard's files are named by time and process


def snapshot(folder: Path) -> dict[str, str]:
    """Hash every file below a folder; folders are listed too, and links with their targets."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] == LOGS:
            continue
        if path.is_symlink():
            contents[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            contents[f"{name}/"] = ""
        else:
            contents[name] = hashlib.sha256(comparable(path)).hexdigest()
    return contents


def comparable(path: Path) -> bytes:
    """Read a file without the declared exceptions."""
    content = path.read_bytes()
    if path.name == "manifest.json":
        manifest = json.loads(content)
        for key in NOT_COMPARED:
            manifest.pop(key, None)
        if manifest["kind"] == "evaluation":  # its files hold times, so do their hashes
            manifest.pop("fingerprint")
            for name in TIMED:
                manifest["files"].pop(name)
        return json.dumps(manifest).encode()
    if path.name in TIMED:
        rows = json.loads(content)
        for row in rows:
            row.pop(TIMED[path.name], None)
        return json.dumps(rows).encode()
    return content


def differences(actual: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Name what is missing, left over or different."""
    return [
        f"{name} is {'left over' if name not in expected else 'missing' if name not in actual else 'different'}"
        for name in sorted(actual.keys() | expected.keys())
        if actual.get(name) != expected.get(name)
    ]
