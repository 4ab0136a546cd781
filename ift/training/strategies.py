"""What `trainer.strategy` may be."""

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "DDPStrategy", "SingleDeviceStrategy")
"""Strategies whose steps are exact here; a class path may give one of the classes with arguments."""
