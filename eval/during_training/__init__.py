"""`EvaluateDuringTraining`: a benchmark's curve beside the loss. The one part of `eval` that needs torch and `ift`.

It stands in a package of its own so that looking for benchmarks, which imports the files of `eval`, starts no torch.
"""

from eval.during_training.callback import EvaluateDuringTraining

__all__ = ["EvaluateDuringTraining"]
