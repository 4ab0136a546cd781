"""Methods of fine-tuning by their short names, with the settings of the papers that brought them.

In YAML, `model.adapter: lora`, or `model.adapter: {class_path: lora, init_args: {r: 16}}`. A method is a PEFT
configuration, weights of the base model, or an adapter to go on with, and what the optimizer or the loading of the
base model must know besides. Any `peft.PeftConfig` may stand there by the name of its class as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
)

from ift.errors import UserError
from ift.models.base_weights import AllWeights, BaseWeights, Biases, Embeddings, LastLayers, SampledLayers
from ift.models.quantization import Scheme

Targets = str | list[str]
"""Names of modules, a regular expression over their full names, or `all-linear`."""


class Method:
    """What is trained.

    Args:
        name: as the user knows it.
        config: a PEFT configuration; weights of the base model; or the folder of an adapter to go on with.
        learning_rate_ratio: by how much LoRA's B matrices learn faster than all else.
        quantization: scheme that the base model is loaded with where the user names none.
        warmup_share: of AdaLoRA, the share of all steps before ranks are taken away.
        final_share: of AdaLoRA, the share of all steps after the last rank was taken away.
    """

    # A class and not a dataclass, as only then the functions below may stand for it in YAML.
    def __init__(
        self,
        name: str,
        config: PeftConfig | BaseWeights | Path,
        *,
        learning_rate_ratio: float = 1.0,
        quantization: Scheme | None = None,
        warmup_share: float = 0.1,
        final_share: float = 0.3,
    ) -> None:
        if learning_rate_ratio <= 0:
            raise UserError(f"model.adapter.learning_rate_ratio: {learning_rate_ratio} is not above 0.")
        for key, share in (("warmup_share", warmup_share), ("final_share", final_share)):
            if not 0 <= share < 1:
                raise UserError(f"model.adapter.{key}: {share} is no share of the steps, from 0 to below 1.")
        self.name, self.config = name, config
        self.learning_rate_ratio, self.quantization = learning_rate_ratio, quantization
        self.warmup_share, self.final_share = warmup_share, final_share

    @property
    def peft_config(self) -> PeftConfig | None:
        """The PEFT configuration of a fresh adapter, if it is one."""
        return self.config if isinstance(self.config, PeftConfig) else None

    @property
    def trains_base(self) -> bool:
        """Whether weights of the base model are trained, so that a whole model is saved."""
        return isinstance(self.config, BaseWeights)


def as_method(adapter: PeftConfig | Method | None) -> Method:
    """Return what stands under `model.adapter` as a method; nothing trains all weights."""
    if adapter is None:
        return full()
    return adapter if isinstance(adapter, Method) else Method(type(adapter).__name__, adapter)


def lora(
    r: int = 8, lora_alpha: float = 16, lora_dropout: float = 0.05, target_modules: Targets = "all-linear"
) -> Method:
    """LoRA (Hu et al. 2022, arXiv 2106.09685), with the settings of Alpaca-LoRA and Alpaca-CoT on all linear layers.

    Args:
        r: rank; a matrix of d_out x d_in gains r (d_in + d_out) parameters.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: of the adapter's input.
        target_modules: names of modules, a regular expression, or all-linear (all but the head).
    """
    return Method("lora", _lora(r, lora_alpha, lora_dropout, target_modules))


def qlora(
    r: int = 64, lora_alpha: float = 16, lora_dropout: float = 0.1, target_modules: Targets = "all-linear"
) -> Method:
    """LoRA on a base model in NF4 with double quantization (Dettmers et al. 2023, QLoRA, arXiv 2305.14314).

    Args:
        r: rank.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: of the adapter's input; 0.1 for models up to 13B, 0.05 for larger ones.
        target_modules: as of lora.
    """
    return Method("qlora", _lora(r, lora_alpha, lora_dropout, target_modules), quantization="nf4")


def dora(
    r: int = 32, lora_alpha: float = 64, lora_dropout: float = 0.05, target_modules: Targets = "all-linear"
) -> Method:
    """Weight-decomposed LoRA (Liu et al. 2024, DoRA, arXiv 2402.09353): a magnitude per output beside the direction.

    Args:
        r: rank; a matrix of d_out x d_in gains r (d_in + d_out) + d_out parameters.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: of the adapter's input.
        target_modules: as of lora.
    """
    return Method("dora", _lora(r, lora_alpha, lora_dropout, target_modules, use_dora=True))


def rslora(
    r: int = 64, lora_alpha: float = 16, lora_dropout: float = 0.05, target_modules: Targets = "all-linear"
) -> Method:
    """Rank-stabilised LoRA (Kalajdzievski 2023, arXiv 2312.03732): the update is scaled by lora_alpha / sqrt(r).

    Args:
        r: rank, which may be high.
        lora_alpha: numerator of the scale.
        lora_dropout: of the adapter's input.
        target_modules: as of lora.
    """
    return Method("rslora", _lora(r, lora_alpha, lora_dropout, target_modules, use_rslora=True))


def lora_plus(
    r: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.05,
    target_modules: Targets = "all-linear",
    learning_rate_ratio: float = 16,
) -> Method:
    """LoRA whose B matrices learn faster than its A matrices (Hayou et al. 2024, LoRA+, arXiv 2402.12354).

    Args:
        r: rank.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: of the adapter's input.
        target_modules: as of lora.
        learning_rate_ratio: B's learning rate over A's, which is the optimizer's lr.
    """
    config = _lora(r, lora_alpha, lora_dropout, target_modules)
    return Method("lora_plus", config, learning_rate_ratio=learning_rate_ratio)


def pissa(
    r: int = 128,
    lora_alpha: float = 128,
    lora_dropout: float = 0.0,
    target_modules: Targets = "all-linear",
    num_iterations: int | None = None,
) -> Method:
    """LoRA that begins with the principal components of each matrix (Meng et al. 2024, PiSSA, arXiv 2404.02948).

    The saved adapter is plain LoRA of rank 2r on the untouched base model.

    Args:
        r: rank.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: of the adapter's input.
        target_modules: as of lora.
        num_iterations: of a fast, approximate decomposition; none for the exact one.
    """
    start = "pissa" if num_iterations is None else f"pissa_niter_{num_iterations}"
    return Method("pissa", _lora(r, lora_alpha, lora_dropout, target_modules, init_lora_weights=start))


def adalora(
    target_r: int = 8,
    init_r: int = 12,
    lora_alpha: float = 32,
    lora_dropout: float = 0.0,
    target_modules: Targets = "all-linear",
    warmup_share: float = 0.1,
    final_share: float = 0.3,
    interval: int = 10,
    orth_reg_weight: float = 0.1,
) -> Method:
    """LoRA whose rank is dealt to the matrices that need it (Zhang et al. 2023, AdaLoRA, arXiv 2303.10512).

    Args:
        target_r: mean rank at the end.
        init_r: rank of every matrix at the start, half as much again as target_r in the paper.
        lora_alpha: the update is scaled by lora_alpha / (remaining rank).
        lora_dropout: of the adapter's input.
        target_modules: as of lora.
        warmup_share: share of all steps before the first rank is taken away.
        final_share: share of all steps after the last one.
        interval: steps between two times that ranks are taken away.
        orth_reg_weight: of the penalty that keeps singular vectors orthogonal, added to the loss of a step.
    """
    config = AdaLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_r=target_r,
        init_r=init_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        deltaT=interval,
        beta1=0.85,
        beta2=0.85,
        orth_reg_weight=orth_reg_weight,
        total_step=3,  # PEFT demands one; the real number of steps is set when the adapter is attached
    )
    return Method("adalora", config, warmup_share=warmup_share, final_share=final_share)


def prefix(num_virtual_tokens: int = 30, projection_size: int | None = None) -> Method:
    """Trained keys and values before the text, in every layer (Li and Liang 2021, arXiv 2101.00190).

    Args:
        num_virtual_tokens: length of the prefix.
        projection_size: hidden units of a network that makes the prefix while training; none trains it directly.
    """
    config = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=num_virtual_tokens,
        prefix_projection=projection_size is not None,
        encoder_hidden_size=projection_size,
    )
    return Method("prefix", config)


def p_tuning(num_virtual_tokens: int = 20, encoder_hidden_size: int = 128) -> Method:
    """Virtual tokens written by a small network (Liu et al. 2021, P-tuning, arXiv 2103.10385).

    Args:
        num_virtual_tokens: before the text.
        encoder_hidden_size: hidden units of the network, a perceptron of three layers.
    """
    config = PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=num_virtual_tokens, encoder_hidden_size=encoder_hidden_size
    )
    return Method("p_tuning", config)


def prompt(num_virtual_tokens: int = 100) -> Method:
    """Trained virtual tokens before the text (Lester et al. 2021, prompt tuning, arXiv 2104.08691).

    They begin as tokens drawn from the vocabulary, as in the paper.

    Args:
        num_virtual_tokens: each one embedding.
    """
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=num_virtual_tokens,
        prompt_tuning_init="SAMPLE_VOCAB",
    )
    return Method("prompt", config)


def ia3(target_modules: Targets | None = None, feedforward_modules: Targets | None = None) -> Method:
    """Scales of keys, values and the hidden units of the MLP (Liu et al. 2022, (IA)3, arXiv 2205.05638).

    Args:
        target_modules: that are scaled; none takes those of the paper where the architecture is known.
        feedforward_modules: of these, the ones whose input is scaled and not their output.
    """
    config = IA3Config(
        task_type=TaskType.CAUSAL_LM, target_modules=target_modules, feedforward_modules=feedforward_modules
    )
    return Method("ia3", config)


def ln_tuning(target_modules: Targets | None = None) -> Method:
    """The norms' weights (and biases) alone (Zhao et al. 2024, arXiv 2312.11420).

    Args:
        target_modules: none takes every norm.
    """
    return Method("ln_tuning", LNTuningConfig(task_type=TaskType.CAUSAL_LM, target_modules=target_modules))


def sadapter_h(bottleneck_size: int = 256, dropout: float = 0.0) -> Method:
    """Adapters in sequence after attention and after the MLP (Houlsby et al. 2019, arXiv 1902.00751).

    Args:
        bottleneck_size: hidden units m; each adapter of width d has 2 d m + m + d parameters.
        dropout: of the hidden units.
    """
    return Method("sadapter_h", _bottleneck("houlsby", bottleneck_size, dropout))


def sadapter_p(bottleneck_size: int = 256, dropout: float = 0.0) -> Method:
    """Adapters in sequence after the MLP only (Pfeiffer et al. 2020, arXiv 2005.00052).

    Args:
        bottleneck_size: hidden units.
        dropout: of the hidden units.
    """
    return Method("sadapter_p", _bottleneck("pfeiffer", bottleneck_size, dropout))


def p_adapter(bottleneck_size: int = 256, dropout: float = 0.0) -> Method:
    """Adapters parallel to a sub-layer (He et al. 2022, arXiv 2110.04366).

    Args:
        bottleneck_size: hidden units.
        dropout: of the hidden units.
    """
    return Method("p_adapter", _bottleneck("parallel", bottleneck_size, dropout))


def bitfit() -> Method:
    """The base model's biases alone (Ben Zaken et al. 2022, arXiv 2106.10199); for models that have some."""
    return Method("bitfit", Biases())


def full() -> Method:
    """All weights."""
    return Method("full", AllWeights())


def freeze(num_layers: int = 2) -> Method:
    """The last decoder layers alone.

    Args:
        num_layers: that are trained.
    """
    return Method("freeze", LastLayers(num_layers))


def embeddings(head: bool = True) -> Method:
    """Embedding and head alone, for new tokens (the first stage of Cui et al. 2023, Chinese-LLaMA, arXiv 2304.08177).

    Args:
        head: train the output head, too; where the two are one matrix, it always is.
    """
    return Method("embeddings", Embeddings(head))


def lisa(num_layers: int = 2, period: int = 10) -> Method:
    """All weights, but only a few decoder layers at a time (Pan et al. 2024, LISA, arXiv 2403.17919).

    Args:
        num_layers: drawn at a time.
        period: steps until others are drawn.
    """
    return Method("lisa", SampledLayers(num_layers, period))


def trained(folder: str, learning_rate_ratio: float = 1.0) -> Method:
    """An adapter that was trained before, to go on with.

    Args:
        folder: a run folder, or an adapter in PEFT's layout.
        learning_rate_ratio: B's learning rate over A's, as of lora_plus; the adapter's folder does not know it.
    """
    return Method("trained", Path(folder), learning_rate_ratio=learning_rate_ratio)


def _lora(r: int, lora_alpha: float, lora_dropout: float, target_modules: Targets, **options: object) -> LoraConfig:
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        **options,
    )


def _bottleneck(
    variant: Literal["houlsby", "pfeiffer", "parallel"], bottleneck_size: int, dropout: float
) -> PeftConfig:
    from ift.models.bottleneck import BottleneckConfig

    return BottleneckConfig(variant=variant, bottleneck_size=bottleneck_size, dropout=dropout)


METHODS: dict[str, Callable[..., Method]] = {
    method.__name__: method
    for method in (
        lora, qlora, dora, rslora, lora_plus, pissa, adalora, prefix, p_tuning, prompt, ia3, ln_tuning,
        sadapter_h, sadapter_p, p_adapter, bitfit, full, freeze, embeddings, lisa,
    )
}  # fmt: skip
"""The short names."""
