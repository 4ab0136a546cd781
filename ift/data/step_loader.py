"""Loads steps, in processes of their own where asked for, and brings what the user can repair back from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ift.data.steps import EpochSampler, Step
from ift.errors import UserError
from ift.interruptions import ignore_in_worker


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker; PyTorch would add the worker's traceback to the message of an error itself."""

    message: str


class _Guarded(Dataset[Step | _Failure]):
    """Steps of which one that the user has to repair something for is a failure, and no error."""

    def __init__(self, steps: Any) -> None:
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Step | _Failure:
        try:
            step: Step = self._steps[index]
        except (UserError, OSError) as error:  # what the command line shows in one line
            return _Failure(str(error))
        return step


class StepLoader(DataLoader[Step]):
    """Yields steps one by one.

    Args:
        steps: a data set of steps by number.
        sampler: the numbers and their order; `None` for all, in order.
        num_workers: processes that make steps ahead; 0 makes each when it is asked for.
    """

    def __init__(self, steps: Any, sampler: EpochSampler | None, *, num_workers: int) -> None:
        self.steps = steps
        data_set: Any = _Guarded(steps) if num_workers else steps
        super().__init__(
            data_set,
            batch_size=None,
            sampler=sampler,
            collate_fn=_identity,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=ignore_in_worker,
        )

    def __iter__(self) -> Any:
        """Return the steps.

        Raises:
            UserError: while they are read; as in this process, whichever made the step.
        """
        return _raising(super().__iter__())


def _raising(steps: Iterator[Any]) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, _Failure):
            raise UserError(step.message)
        yield step


def _identity(step: Any) -> Any:
    return step
