"""`ift`: a platform for studying instruction fine-tuning of large language models.

Importing this package imports no heavy library; commands and submodules import what they use.
"""

__version__ = "0.1.0"
