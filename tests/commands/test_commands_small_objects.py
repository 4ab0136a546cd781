"""`ift fit` starts with an allocator that keeps no small pieces apart, and changes nothing that was said of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from ift import small_objects
from ift.small_objects import KEPT_APART, settings_for_start

WITHOUT = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


@pytest.fixture
def old_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_objects, "_glibc_version", lambda: (2, 36))


@pytest.mark.usefixtures("old_glibc")
def test_settings_are_added_to_what_is_there() -> None:
    assert settings_for_start({"A": "1"}) == {"A": "1", "GLIBC_TUNABLES": WITHOUT}
    other = {"GLIBC_TUNABLES": "glibc.rtld.nns=4"}
    assert settings_for_start(other) == {"GLIBC_TUNABLES": f"glibc.rtld.nns=4:{WITHOUT}"}


@pytest.mark.usefixtures("old_glibc")
@pytest.mark.parametrize("name", KEPT_APART)
def test_what_was_said_stays(name: str) -> None:
    assert settings_for_start({"GLIBC_TUNABLES": f"{name}=7"}) is None


@pytest.mark.parametrize("version", [None, (2, 38), (2, 41)])
def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int] | None) -> None:
    monkeypatch.setattr(small_objects, "_glibc_version", lambda: version)
    assert settings_for_start({}) is None


@pytest.mark.skipif(settings_for_start({}) is None, reason="needs a glibc before 2.38")
def test_the_program_starts_anew_once_with_the_same_arguments_and_process(tmp_path: Path) -> None:
    # A module of ift's own name in the place of the command, so that nothing heavy is imported.
    (tmp_path / "seen.py").write_text(
        "import json, os, sys\n"
        "def run(command, arguments):\n"
        "    seen = os.getpid(), os.environ.get('GLIBC_TUNABLES'), command, arguments, sys.flags.dev_mode\n"
        "    print(json.dumps(seen))\n"
    )
    (tmp_path / "ift").write_text(
        "import sys\nfrom ift import cli\n"
        "cli.COMMANDS = {name: ('seen', '') for name in cli.COMMANDS}\nsys.exit(cli.main())\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment = {**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}

    def seen(command: str) -> tuple[int, list[object]]:
        started = [sys.executable, "-X", "dev", str(tmp_path / "ift"), command, "--a b", "ö"]
        child = subprocess.Popen(started, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        out, _ = child.communicate(timeout=60)
        return child.pid, json.loads(out)

    pid, found = seen("fit")
    assert found == [pid, WITHOUT, "fit", ["--a b", "ö"], True]
    pid, found = seen("merge")
    assert found[:3] == [pid, None, "merge"]
