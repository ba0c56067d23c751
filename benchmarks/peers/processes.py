"""A peer's environment and its process: what run.py speaks with."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LINE = 160  # letters of a reason


class Worker:
    """A peer's process: one JSON request per line in, one JSON answer per line out."""

    def __init__(self, name: str, python: str, checkpoint: Path, cache: Path, threads: int) -> None:
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.name = name
        self._folders = {
            str(checkpoint): checkpoint.name,
            str(cache): cache.name,
        }  # tables name no folders of a machine
        self._log = (cache / f"{name}.log").open("w+", encoding="utf-8")
        folder = cache / (constant(name, "EXPORT_OF") or name)
        command = [python, str(HERE / "worker.py"), name, str(checkpoint), str(folder), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=variables
        )

    def ask(self, **request: Any) -> Any:
        """Send a request, wait for its answer; raises RuntimeError with the peer's last line where it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            lines = [text for text in self._log.read().splitlines() if text.strip()]
            why = reason(lines or [f"died without a word, status {status}"])
            for path, short in self._folders.items():
                why = why.replace(path, short)
            raise RuntimeError(why[:LINE])
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()


def reason(lines: list[str]) -> str:
    """The line that says why; where an export was a process of its own, its error and not that it had one."""
    errors = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception)\b", line)]
    return next((line for line in reversed(errors) if not line.startswith("subprocess.")), lines[-1]).strip()


def environment(name: str, cache: Path, shared: bool) -> str:
    """The python of a peer's environment, made once; the current one for peers that need nothing else.

    Raises:
        RuntimeError: pip could not install what the peer needs; its last line.
    """
    wanted = constant(name, "REQUIREMENTS")
    if not wanted:
        return sys.executable
    folder = cache / f"venv-{name.split('_')[0]}"
    python, whole = folder / "bin" / "python", folder / ".whole"
    if not whole.exists():
        venv.create(folder, with_pip=True, system_site_packages=False)
        if shared:
            site = next((folder / "lib").glob("python3*")) / "site-packages"
            (site / "base.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
        extra = ["--no-deps"] if shared else []
        command = [str(python), "-m", "pip", "install", "-q", *extra, *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "error"))]
            raise RuntimeError(f"pip: {(errors or ['failed'])[-1]}"[:LINE])
        whole.touch()
    return str(python)


def constant(name: str, key: str) -> Any:
    """A constant of a peer's file, read without importing it; None where it has none."""
    for node in ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == key:
            return ast.literal_eval(node.value)
    return None
