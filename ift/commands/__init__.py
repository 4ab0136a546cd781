"""The commands behind `ift …`; each module imports heavy libraries, so `ift.cli` imports it only when it is called."""
