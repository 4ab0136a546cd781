"""The model card of an exported model: README.md with the hub's metadata in its header."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift.data.catalogue import load_catalogue
from ift.data.catalogue_schema import Collection
from ift.data.chat_template_export import PromptFormat
from ift.hub import local_folder
from ift.models.certificate import Certificate
from ift.models.trained_run import TrainedRun

_LANGUAGES = {"EN": "en", "CN": "zh", "ML": "multilingual"}
"""The catalogue's tags to the hub's."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class CardFacts:
    """What a model card says that is not in the run folder."""

    title: str
    base_name: str
    """The base model as the run named it."""
    config: Mapping[str, Any]
    """The run's resolved configuration."""
    dtype: str
    certificate: Certificate
    prompt: PromptFormat
    written: str
    """What was written, in a sentence."""
    encoder_decoder: bool = False
    """Whether an encoder reads the prompt, so that the model writes the response alone."""
    own_class: bool = False
    """Whether transformers has no class for the model, so that it takes ift to load it."""


def model_card(run: TrainedRun, facts: CardFacts) -> str:
    """Return the text of the card."""
    sections = [
        ("", f"# {facts.title}\n\n{facts.written}"),
        ("Base model", _base(run, facts)),
        ("Data", _data(run, facts)),
        ("Method", _method(run, facts)),
        ("Scores", _scores(run)),
        ("How to load", _loading(facts)),
        ("Certificate", _certificate(facts.certificate)),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections)
    return f"---\n{_metadata(run, facts)}---\n\n{body}\n"


def _metadata(run: TrainedRun, facts: CardFacts) -> str:
    import yaml

    sources = [_collection(source) for source in _sources(facts.config)]
    datasets = [collection.hub for collection in sources if collection is not None and collection.hub]
    datasets += [str(one["path"]) for one in _sources(facts.config) if _is_hub_id(str(one["path"]))]
    languages = [_LANGUAGES[tag] for one in sources if one is not None for tag in one.languages if tag in _LANGUAGES]
    known: dict[str, Any] = {
        "license": base_licence(facts.base_name),
        "base_model": facts.base_name if _is_hub_id(facts.base_name) else None,
        "base_model_relation": "finetune" if _is_hub_id(facts.base_name) else None,
        "datasets": list(dict.fromkeys(datasets)),
        "language": list(dict.fromkeys(languages)),
        "library_name": "transformers",
        "pipeline_tag": "text2text-generation" if facts.encoder_decoder else "text-generation",
        "tags": ["instruction-tuning", "ift", *([_method_name(run)] if run.adapter is not None else [])],
    }
    header = {key: value for key, value in known.items() if value}
    return str(yaml.safe_dump(header, sort_keys=False, allow_unicode=True))


def base_licence(base: str) -> str | None:
    """Return the licence that the base model's own card states, or `None`."""
    import yaml

    folder = local_folder(base)
    card = folder / "README.md" if folder is not None else None
    if card is None or not card.is_file():
        return None
    header = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        found = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError:
        return None
    return str(found["license"]) if isinstance(found, dict) and found.get("license") else None


def _is_hub_id(name: str) -> bool:
    return local_folder(name) is None and not Path(name).exists() and bool(_HUB_ID.fullmatch(name))


def _sources(config: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return list(config.get("data", {}).get("sources", []))


def _collection(source: Mapping[str, Any]) -> Collection | None:
    """Return what the catalogue knows of a source, by its name there or its hub id."""
    path = str(source["path"])
    for one in load_catalogue():
        if one.name == path or (one.hub == path and not one.files):
            return one
    return None


def _shown(name: str) -> str:
    """Return a hub id as it is, and of a place on the training machine the last name only."""
    return name if _is_hub_id(name) else Path(name).name


def _base(run: TrainedRun, facts: CardFacts) -> str:
    licence = base_licence(facts.base_name)
    lines = [f"`{_shown(facts.base_name)}`, fingerprint `{run.manifest['base']['fingerprint'][:16]}`."]
    lines.append(f"Its licence: {licence}." if licence else "Its licence is not known here; it binds this model too.")
    return " ".join(lines)


def _data(run: TrainedRun, facts: CardFacts) -> str:
    lines = ["| source | examples | licence | commercial use |", "|---|---|---|---|"]
    # Those that do not stream, in their order.
    counted: Iterator[Mapping[str, Any]] = iter(run.manifest["data"].get("sources", []))
    for source in _sources(facts.config):
        collection = _collection(source)
        name = collection.title if collection is not None else _shown(str(source["path"]))
        licence = collection.licence if collection is not None else "not known"
        commercial = str(collection.commercial) if collection is not None else "not known"
        if collection is not None and collection.output_of:
            commercial += f" (written by models of {collection.output_of}, whose terms may bind)"
        examples = "streamed" if source.get("stream") else next(counted, {}).get("examples", "not counted")
        lines.append(f"| {name} | {examples} | {licence} | {commercial} |")
    data = run.manifest["data"]
    lines += ["", f"Trained on {data['train_examples']} examples, {data['validation_examples']} held out."]
    return "\n".join(lines)


def _method_name(run: TrainedRun) -> str:
    return str(run.manifest.get("method") or run.manifest.get("adapter") or "full")


def _method(run: TrainedRun, facts: CardFacts) -> str:
    manifest, model, data = run.manifest, facts.config.get("model", {}), facts.config.get("data", {})
    optimizer = model.get("optimizer", {})
    parameters = manifest["parameters"]
    rows = {
        "method": _method_name(run),
        "trainable parameters": f"{parameters['trainable']:,} of {parameters['total']:,}",
        "base weights in training": manifest["dtype"]
        + (f", quantized ({json.dumps(manifest['quantization'])})" if manifest.get("quantization") else ""),
        "vocabulary": _vocabulary(manifest.get("vocabulary")),
        "rotary positions": json.dumps({name: one for name, one in (manifest.get("rope") or {}).items() if one})
        if manifest.get("rope")
        else "the base model's",
        "optimizer": f"{optimizer.get('class_path')} {json.dumps(optimizer.get('init_args', {}))}",
        "schedule": json.dumps(model.get("schedule")),
        "steps": manifest.get("steps"),
        "examples per step": data.get("global_batch_size"),
        "longest example": f"{data.get('max_length')} tokens",
        "seed": manifest.get("seed"),
        "ift": manifest["versions"].get("ift"),
    }
    settings = model.get("adapter")
    lines = [f"| {name} | {value} |" for name, value in rows.items() if name != "vocabulary" or value]
    text = "\n".join(["| setting | value |", "|---|---|", *lines])
    if settings:
        text += f"\n\nAdapter as configured:\n\n```json\n{json.dumps(_set_values(settings), indent=1)}\n```"
    return text


def _vocabulary(enlarged: Mapping[str, Any] | None) -> str | None:
    """Return what became of the base model's vocabulary, or `None` where it is its own."""
    if enlarged is None:
        return None
    begin = enlarged["settings"]["initialization"]
    return f"{enlarged['new_tokens']:,} new tokens (they began as: {begin}), {enlarged['rows']:,} rows"


def _set_values(settings: Any) -> Any:
    """Leave out what is not set."""
    if not isinstance(settings, Mapping):
        return settings
    return {key: _set_values(value) for key, value in settings.items() if value not in (None, {}, [])}


def _scores(run: TrainedRun) -> str:
    lines = []
    if results := run.manifest.get("validation"):
        lines += ["| step | validation loss | perplexity | supervised tokens |", "|---|---|---|---|"]
        lines += [
            f"| {one['step']} | {one['loss']:.4f} | {one['perplexity']:.3f} | {one['supervised_tokens']} |"
            for one in results
        ]
    report = run.folder.root / "report.json"
    if report.is_file():
        lines += ["", "report.json of the run:", "", "```json", report.read_text(encoding="utf-8").strip(), "```"]
    if run.adapter is not None and lines:
        lines += ["", "Measured with the adapter beside its base model; the certificate says what the merge changed."]
    return "\n".join(lines) or "None were measured."


def _loading(facts: CardFacts) -> str:
    options = "".join(f", {name}={value!r}" for name, value in facts.prompt.options)
    ids = (
        'messages = [{"role": "user", "content": request}]\n'
        f"ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False{options})"
    )
    note = (
        f"The chat template gives the ids of training on all {facts.prompt.compared} prompts of the run that were "
        "compared. A request's `context` (alpaca's `input`) is a key of its message."
    )
    if facts.prompt.differing or not facts.prompt.compared:
        ids = _pieces_code(facts.prompt)
        reason = (
            f"gives other ids on {facts.prompt.differing} of {facts.prompt.compared} prompts of the run"
            if facts.prompt.compared
            else "could not be compared with the run's prompts"
        )
        note = (
            f"The template as a chat template {reason}, because transformers tokenizes the whole text at once, so "
            "prompts are to be made as above. `template.json` describes the template in full."
        )
    kind = "AutoModelForSeq2SeqLM" if facts.encoder_decoder else "AutoModelForCausalLM"
    response = "[0]" if facts.encoder_decoder else "[0, len(ids):]"
    imports = f"from transformers import {kind}, AutoTokenizer"
    model = f'{kind}.from_pretrained(folder, dtype="{facts.dtype}")'
    if facts.own_class:
        imports = "from transformers import AutoTokenizer\n\nfrom ift.models.loading import load_base_model"
        model = f'load_base_model("folder", folder, "{facts.dtype}").eval()  # transformers has no class for it'
    code = f"""```python
import torch
{imports}

folder = "."  # of this model
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {model}
request = "Say hello."
{ids}
answer = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False){response}
print(tokenizer.decode(answer, skip_special_tokens=True))
```"""
    return f"{code}\n\n{note}"


def _pieces_code(prompt: PromptFormat) -> str:
    """Return Python that tokenizes piece by piece, as `plain_prompt_ids` does."""
    parts = []
    for text, is_special in prompt.pieces:
        before, mark, after = text.partition(prompt.text_mark)
        written = f"{before!r} + request + {after!r}" if mark else repr(text)
        parts.append(f"    ({written}, {is_special}),")
    return (
        "pieces = [  # text, and whether it is a special token\n"
        + "\n".join(parts)
        + "\n]\nids = []\nfor text, is_special in pieces:\n    if is_special:\n"
        + "        ids.append(tokenizer.convert_tokens_to_ids(text))\n    else:\n"
        + "        ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids"
    )


def _certificate(certificate: Certificate) -> str:
    tokens = certificate.comparisons[0].num_tokens
    return (
        f"Compared on {certificate.num_prompts} prompts ({certificate.prompts}), at the {tokens} positions at which a "
        "token of the response is predicted, with the response of the data before them. KL is of the reference from "
        "the candidate, in nats; changed is how often the likeliest token is another. Also in `certificate.json`.\n\n"
        f"{certificate.table()}"
        + "".join(f"\n\n**Beyond its limit, and accepted:** {problem}" for problem in certificate.problems())
    )
