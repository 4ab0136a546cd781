"""The folder of a base model on this machine; what lies on the hub is fetched, but for code."""

from pathlib import Path

from ift.errors import UserError
from ift.hub import check_base, local_folder

_NEVER = ("*.py", "*.msgpack", "*.h5", "*.onnx", "*.gguf", "*.pt", "*.pth", "*.ckpt", "original/*")


def base_folder(key: str, base: str) -> Path:
    """Return the folder of a base model, fetched from the hub where it is not here.

    Args:
        key: that named it, for errors.
        base: folder or hub id.

    Raises:
        UserError: no such folder, and nothing of that name can be fetched.
    """
    check_base(key, base)
    folder = local_folder(base)
    if folder is not None:
        return folder
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        try:
            names = HfApi().list_repo_files(base)
        except (OfflineModeIsEnabled, OSError):  # what was fetched before will do
            names = []
        doubled = ("*.bin",) if any(name.endswith(".safetensors") for name in names) else ()
        return Path(snapshot_download(base, ignore_patterns=[*_NEVER, *doubled]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: there is no folder '{base}', and the hub gave none: {reason}") from error
