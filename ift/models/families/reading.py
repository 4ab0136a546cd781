"""Classes that read original files: a class of transformers, and how names and matrices of the files become its own."""

from collections.abc import Sequence
from typing import Any


def reading_class(native: Any, name: str, *, conversions: Sequence[Any], ignored: Sequence[str] = ()) -> Any:
    """Return a subclass of a model class that reads files of another layout.

    transformers looks conversions up by the name of the class, so that its own class stays as it is.

    Args:
        native: the class that the model is to be.
        name: of the subclass, unlike that of any class of transformers; by its end, `ForCausalLM`, transformers knows
            the loss.
        conversions: `WeightRenaming` and `WeightConverter` of transformers.
        ignored: patterns of tensors in the files that the model has no place for, as stored rotations.
    """
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping

    already = list(native._keys_to_ignore_on_load_unexpected or [])
    made = type(name, (native,), {"_keys_to_ignore_on_load_unexpected": [*already, *ignored], "__module__": __name__})
    if conversions:
        register_checkpoint_conversion_mapping(name, list(conversions), overwrite=True)
    return made


def become_native(model: Any, native: Any) -> None:
    """Let a model that was read be a plain one of transformers, which is saved in transformers' own layout.

    Args:
        model: of a class by `reading_class`.
        native: the class that it is a subclass of.
    """
    model.__class__ = native
    # transformers would undo these in `save_pretrained`, and write matrices that the config knows nothing of.
    model._weight_conversions = []
    model.config.architectures = [native.__name__]
