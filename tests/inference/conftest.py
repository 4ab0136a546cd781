from pathlib import Path

import lightning.pytorch  # noqa: F401 (its log handler keeps the stderr of its import, which must outlive one test)
import pytest
from predicting import CPU, Predicting, fit, make_prompts, run_settings, write_prompts
from tiny import make_rows, write_json


@pytest.fixture(scope="session")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with LoRA over the tiny base model."""
    folder = tmp_path_factory.mktemp("trained")
    rows = write_json(folder / "rows.json", make_rows(40))
    return fit(folder / "run", run_settings(folder / "run", base, rows))


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty prompts to answer and to rank."""
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", make_prompts(30))


@pytest.fixture
def predict(trained: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]) -> Predicting:
    """Predicts with the trained run on the prompts of `prompts_file`, unless told otherwise."""
    decoding = ["--model.decoding.max_new_tokens=12", "--data.batch_size=4"]
    return Predicting(capsys, [f"--run={trained}", f"--data.path={prompts_file}", *decoding, *CPU])
