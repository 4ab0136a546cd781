"""Base models and adapters: from a path or hub id to a module ready for training or generation."""
