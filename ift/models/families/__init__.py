"""Base models of 2023 that shipped their own modelling code, loaded without running any of it."""
