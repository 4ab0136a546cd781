"""Benchmarks: from data to prompts, and from predictions to a report; runs without torch (see README.md)."""
