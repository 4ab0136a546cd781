"""Hub ids without a network: one question, then what was fetched before, then one error."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from ift import hub
from ift.errors import UserError

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As if nothing were known of the network; returns the cache, which is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub._silence_of_hub.cache_clear()
    yield tmp_path / "hub"
    hub._silence_of_hub.cache_clear()


def keep(base: Path, cache: Path) -> None:
    """Put a model into the cache, as the hub's client does."""
    folder = cache / "models--owner--tiny"
    shutil.copytree(base, folder / "snapshots" / REVISION)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)


def test_a_hub_that_answers_is_asked_once(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "_question", asked.append)
    for _ in range(3):
        hub.check_base("model.base", "owner/tiny")
    assert asked == [constants.ENDPOINT] and not constants.HF_HUB_OFFLINE


def test_one_error_says_what_was_tried(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(UserError) as caught:
        hub.check_base("model.base", "owner/tiny")
    said = str(caught.value)
    assert said.startswith("model.base: 'owner/tiny' is no folder (looked in ")
    assert "the hub (http://127.0.0.1:9) cannot be reached (" in said
    assert f"nothing of that name was fetched before (looked in {online})" in said
    assert "hf download owner/tiny" in said
    assert not constants.HF_HUB_OFFLINE


def test_silence_is_not_waited_for(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(hub, "_question", lambda endpoint: time.sleep(60))
    with pytest.raises(UserError, match="did not answer within 0.2 s, and nothing of that name was fetched before"):
        hub.check_base("model.base", "owner/tiny")


def test_offline_by_ones_own_wish_is_told(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_question", lambda endpoint: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="the environment variable HF_HUB_OFFLINE is set, and nothing of that name"):
        hub.check_base("model.base", "owner/tiny")


def test_a_model_of_the_cache_trains_without_a_network(config: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    keep(base, tmp_path / "hub")
    path = config("run", model={"base": "owner/tiny"}, trainer={"max_steps": 2})
    program = (
        "import os; os.environ.pop('HF_HUB_OFFLINE', None); os.environ['HF_ENDPOINT'] = 'http://127.0.0.1:9'; "
        f"os.environ['HF_HUB_CACHE'] = {str(tmp_path / 'hub')!r}; "
        "from ift.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "fit", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("'owner/tiny' is read as it was fetched before.") == 1
    assert "Retry" not in done.stderr
    assert (path.with_suffix("") / "adapter" / "adapter_model.safetensors").is_file()
