"""Objective, module, callbacks: how a step changes the weights, and what is told about it."""
