"""Stand-ins for the programs of clouds and clusters."""

import os
import subprocess
from pathlib import Path


class FakePrograms:
    """Programs on PATH that record how they were called, and may do more."""

    def __init__(self, root: Path):
        self.root, self.record = root, root / "record"
        self.bin = root / "bin"
        self.bin.mkdir()
        self.record.touch()
        self.add("sleep")

    def add(self, name: str, body: str = "", folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        # In one write: several may be called at once.
        note = f"printf '%s\\n' \"$(printf '%s\\037' \"${{0##*/}}\" \"$@\")\" >>'{self.record}'"
        path.write_text(f"#!/bin/bash\n{note}\n{body}\n")
        path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "FAKES": str(self.root)}

    def run(self, *command, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=self.root, env=self.environment | environment, capture_output=True,
                              text=True, timeout=60)

    def calls(self, name: str) -> list[list[str]]:
        calls = [line.split("\037")[:-1] for line in self.record.read_text().splitlines()]
        return [call[1:] for call in calls if call[0] == name]
