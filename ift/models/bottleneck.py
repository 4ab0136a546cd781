"""Bottleneck adapters as a method of PEFT: in sequence (Houlsby, Pfeiffer) and in parallel (He).

The three adapters of "An Empirical Study of Instruction-tuning Large Language Models in Chinese" (Si et al. 2023, arXiv
2310.07328), which takes them from LLM-Adapters (Hu et al. 2023, arXiv 2304.01933):

- `houlsby` (SadapterH): behind attention and behind the MLP (Houlsby et al. 2019, arXiv 1902.00751);
- `pfeiffer` (SadapterP): behind the MLP only (Pfeiffer et al. 2020, arXiv 2005.00052);
- `parallel` (P-adapter): beside the MLP (He et al. 2022, arXiv 2110.04366, who find this the best place, as
  LLM-Adapters does).

Places follow the papers that brought the three. Alpaca-CoT's program, that of the Chinese study, has others by default:
`houlsby` before the MLP's first matrices and behind its last, none behind attention; `parallel` beside each of q_proj,
k_proj and v_proj, which `target_modules` can have here too. Its adapters have no bias (`use_bias: false`) and begin
near, not at, zero (`init: near_identity`).

PEFT knows the type `BOTTLENECK` once this module is imported; that registration is the one thing done at import, so
that `import ift.models.bottleneck` suffices for `PeftModel.from_pretrained`. Without it PEFT says `KeyError:
'BOTTLENECK'`. The adapters cannot be merged, as they have a non-linearity, nor be mixed with LoRA in one `PeftModel`.
`adapter_config.json` and `adapter_model.safetensors` are PEFT's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from peft import PeftConfig, TaskType, mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from ift.errors import UserError, unknown_name
from ift.models.bottleneck_layer import MERGE_REFUSAL, BottleneckLayer
from ift.models.bottleneck_sites import Variant, default_targets

PEFT_TYPE = "BOTTLENECK"
NonLinearity = Literal["tanh", "relu", "gelu", "silu", "sigmoid"]
Init = Literal["identity", "near_identity"]


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]  # PEFT is untyped
    """Settings of bottleneck adapters.

    An adapter of m hidden units behind or beside a module of width d has 2 d m + m + d parameters.
    """

    task_type: Any = TaskType.CAUSAL_LM
    """PEFT's kind of task."""
    variant: Variant = "houlsby"
    """houlsby: behind attention and MLP; pfeiffer: behind the MLP; parallel: beside the MLP."""
    bottleneck_size: int = 256
    """Hidden units m of each adapter; 256 as in LLM-Adapters' and Alpaca-CoT's programs."""
    non_linearity: NonLinearity = "tanh"
    """Between the two matrices; tanh as in these programs (gelu suits Houlsby's paper, relu Pfeiffer's and He's)."""
    scaling: float | Literal["learned"] = 1.0
    """Factor of the adapter's output; 1 as in these programs, 4 in He's scaled parallel adapter; or learned."""
    dropout: float = 0.0
    """Of the hidden units, while training; 0 as in these programs."""
    use_bias: bool = True
    """Whether both matrices have a bias, as in Houlsby's and He's papers; the two programs have none."""
    init: Init = "identity"
    """identity: the second matrix begins as zeros (He), so the model begins unchanged; near_identity: both matrices
    are drawn with a deviation of 0.02, as in the two programs."""
    target_modules: list[str] | str | None = None
    """Names of modules, or a regular expression over full names; by default the variant's places in the family."""
    exclude_modules: list[str] | str | None = None
    """Names, or a regular expression, of modules that are left out."""
    layers_to_transform: list[int] | int | None = None
    """Numbers of the only layers that are adapted, from 0."""
    layers_pattern: list[str] | str | None = None
    """Name of the list of layers, where a model has several."""
    modules_to_save: list[str] | None = None
    """Further modules that are trained whole and saved with the adapter, such as a resized embedding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        for key, choices in (("variant", Variant), ("non_linearity", NonLinearity), ("init", Init)):
            if getattr(self, key) not in get_args(choices):
                raise unknown_name(key, str(getattr(self, key)), get_args(choices))
        if self.bottleneck_size < 1:
            raise UserError(f"bottleneck_size: {self.bottleneck_size} is no number of hidden units; 1 or more.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout: {self.dropout} is not a share from 0 to below 1.")
        if self.scaling != "learned" and (not isinstance(self.scaling, int | float) or self.scaling == 0):
            raise UserError(f"scaling: {self.scaling!r} is neither a number other than 0 nor 'learned'.")
        self._check_targets()

    def _check_targets(self) -> None:
        targets = self.target_modules
        if isinstance(targets, str) and targets.lower() == "all-linear":
            raise UserError(
                "target_modules: 'all-linear' is for methods that change a matrix; a bottleneck adapter follows a "
                "sub-layer. Leave target_modules out, or name modules."
            )
        if isinstance(targets, str) and self.layers_to_transform is not None:
            raise UserError("layers_to_transform: goes with a list of target_modules, not with a regular expression.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise UserError("layers_pattern: needs layers_to_transform, the layers' numbers.")
        if targets is not None and not isinstance(targets, str):
            self.target_modules = sorted(targets)


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """PEFT's tuner for bottleneck adapters."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        if model_config.get("slow_but_exact") and model_config.get("pretraining_tp", 1) > 1:
            raise UserError(
                "model.adapter: a Bloom model with slow_but_exact reads its matrices past the adapters. Set "
                "slow_but_exact to false in the base model's config.json."
            )
        if peft_config.target_modules is None:
            model_type = model_config.get("model_type", "custom")
            peft_config.target_modules = default_targets(peft_config.variant, self.model, model_type=model_type)
        return peft_config

    def _prepare_model(self, peft_config: BottleneckConfig, model: nn.Module) -> None:
        """Refuse an adapter within what another adapts: PEFT would pass it over, or save it under a wrong name."""
        places = {
            name.replace(".base_layer", "")
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer) or _is_target(self, peft_config, name)
        }
        for place in sorted(places):
            parents = place.split(".")[:-1]
            outer = {".".join(parents[:end]) for end in range(1, len(parents) + 1)} & places
            if outer:
                raise UserError(
                    f"target_modules: '{place}' lies within '{min(outer)}', and only one of them can be adapted in one "
                    "model. Name either, and load adapters of other places into a model of their own."
                )

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        hidden_size = self.model.config.get_text_config().hidden_size
        layer = BottleneckLayer(target, adapter_name, config=peft_config, hidden_size=hidden_size)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put a module in another's place; PEFT's own way needs a weight, which sub-layers lack."""
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise UserError(MERGE_REFUSAL)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse one adapter per example, which PEFT would drop in silence."""
        if kwargs.get("adapter_names") is not None:
            raise UserError(
                "adapter_names: bottleneck adapters are the same for all examples; call set_adapter instead."
            )
        yield


def _is_target(tuner: BottleneckModel, config: BottleneckConfig, name: str) -> bool:
    """Whether a configuration names a module, by the name it has in the plain model."""
    inside = any(part.startswith(BottleneckModel.prefix) for part in name.split("."))
    plain = name.replace(".base_layer", "")
    return bool(name) and not inside and bool(tuner._check_target_module_exists(config, plain))


def register() -> None:
    """Make the type known to PEFT, whose own registration takes no new names (0.21)."""
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = BottleneckConfig
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = BottleneckModel
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = BottleneckModel.prefix


register()
