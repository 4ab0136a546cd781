"""GaLore: AdamW whose moments live in a subspace of each weight matrix's gradient.

Through `pytorch-optimizer`, which is no requirement: `pip install "ift[galore]"`. What this adds is that
matrices too small for the rank are left to plain AdamW, and that checkpoints hold plain values, so that a run resumes.

Reference: Zhao et al. 2024, "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection" (arXiv:2403.03507).
"""

from typing import Any, Literal

try:
    from pytorch_optimizer import GaLore
    from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector
except ImportError as error:
    raise ImportError('GaLore needs another package: pip install "ift[galore]"') from error


class GaLoreAdamW(GaLore):  # type: ignore[misc]  # the package is optional, so its classes have no types here
    """AdamW with its moments in a subspace for every matrix larger than the rank, the embedding and head among them.

    (The paper's experiments leave embedding and head to plain AdamW.)

    Args:
        params: weights or groups of weights.
        lr: learning rate.
        rank: dimensions of the subspace.
        update_proj_gap: steps after which the subspace is chosen anew, by a singular value decomposition.
        scale: of the update of projected matrices, beside other weights.
        projection_type: which side of a matrix is projected; `std` is the longer one's.
        betas: decay of the moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        rank: int,
        update_proj_gap: int = 200,
        scale: float = 0.25,
        projection_type: Literal["std", "reverse_std", "right", "left"] = "std",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        if rank < 1 or update_proj_gap < 1:
            raise ValueError(f"rank {rank} and update_proj_gap {update_proj_gap} must be at least 1")
        settings = {"rank": rank, "update_proj_gap": update_proj_gap, "scale": scale}
        groups = _split_groups(list(params), {**settings, "projection_type": projection_type})
        super().__init__(groups, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """Return the state with projectors as plain values, which load without pickle."""
        found: dict[str, Any] = super().state_dict()
        plain = {
            number: {name: vars(value) if name == "projector" else value for name, value in state.items()}
            for number, state in found["state"].items()
        }
        return {**found, "state": plain}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "projector" in state:
                projector = GaLoreProjector()
                vars(projector).update(state["projector"])
                state["projector"] = projector


def _split_groups(params: list[Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return groups of which some hold only matrices larger than the rank, with the settings of the projection."""
    split = []
    for group in params if isinstance(params[0], dict) else [{"params": params}]:
        larger = [weight for weight in group["params"] if weight.ndim == 2 and min(weight.shape) > settings["rank"]]
        chosen = set(larger)
        others = [weight for weight in group["params"] if weight not in chosen]
        split += [{**group, "params": larger, **settings}] if larger else []
        split += [{**group, "params": others}] if others else []
    return split
