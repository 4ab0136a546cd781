"""An enlarged vocabulary: old rows stay bit for bit, new ones begin as said, and every family computes as before."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_models import make_model
from byte_level import make_byte_level
from original_checkpoints import CHECKPOINTS, write_checkpoint
from peft import LoraConfig, TrainableTokensConfig
from tiny import ROOT, make_rows
from torch.nn import functional as F
from transformers import AutoTokenizer
from vocabularies import frequent_pairs, larger_tokenizer

from ift.data.enlarged_tokenizer import EnlargedTokenizer, enlarged_tokenizer
from ift.errors import UserError
from ift.models.adapters import attach, num_trainable
from ift.models.enlarging import enlarge
from ift.models.merging import merge
from ift.models.methods import as_method, bitfit, embeddings, freeze, full, ia3, ln_tuning, lora, prefix
from ift.models.quantization import Quantization
from ift.models.trained_adapters import load_adapter
from ift.models.trained_rows import ends_of, trains_rows, with_trained_rows
from ift.models.vocabulary import Growth, Vocabulary, growth_of

SHARED = ROOT.parent / "shared" / "data" / "tokenizers"
VOCABULARY = 90
PIECES = {85: (3, 4), 90: (5, 6, 7), 91: (8,), 93: ()}
"""85 is padding of the base model's embedding that a token takes; 92 is no token's."""
KNOWN = tuple(range(80))
NEW = [85, 90, 91, 93]
IDS = torch.arange(3, 75).reshape(2, 36)
FAMILIES = (
    "llama",
    "gemma2",
    "bloom",
    "gpt2",
    "gpt_neox",
    "qwen2",
    "codegen",
    "glm",
    "phi",
    "falcon",
    "opt",
    "gemma3_text",
)
Initialization = Any


def growth(initialization: Initialization = "pieces", *, rows: int = 96, seed: int = 5) -> Growth:
    return Growth(VOCABULARY, rows, KNOWN, PIECES, initialization, seed)


def matrices(model: Any) -> dict[str, torch.Tensor]:
    """Embedding, head and the head's bias, `(rows, columns)`, once each."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = {"embedding": embedding.weight}
    if head.weight is not embedding.weight:
        found["head"] = head.weight
    if getattr(head, "bias", None) is not None:
        found["bias"] = head.bias[:, None]
    return {name: one.detach().clone() for name, one in found.items()}


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    model.eval()
    result: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_old_rows_stay_and_new_ones_are_the_mean_of_their_pieces(family: str) -> None:
    model = make_model(family)
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        torch.nn.init.normal_(head.bias)
    tied = head.weight is model.get_input_embeddings().weight
    kind, before, expected = type(head), matrices(model), logits(model)
    enlarge(model, growth())
    after = matrices(model)
    assert after.keys() == before.keys() and ("head" in after) != tied
    for name, old in before.items():
        new = after[name]
        assert new.shape == (96, old.shape[1])
        kept = [index for index in range(VOCABULARY) if index != 85]
        assert torch.equal(new[kept], old[kept])
        for index, pieces in PIECES.items():
            mean = old[list(pieces or KNOWN)].double().numpy().mean(axis=0)
            torch.testing.assert_close(new[index], torch.tensor(mean).float(), rtol=0, atol=1e-7)
        assert torch.equal(new[92], new[93]) and torch.equal(new[95], new[93])
    found = logits(model)
    assert found.shape[-1] == 96 and model.config.get_text_config(decoder=True).vocab_size == 96
    torch.testing.assert_close(found[..., kept], expected[..., kept], rtol=0, atol=2e-6)
    assert type(model.get_output_embeddings()) is kind
    assert torch.isfinite(logits(model, torch.tensor([NEW]))).all()


def test_a_saved_enlarged_model_loads_as_a_plain_one(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for family in ("llama", "bloom", "codegen"):
        model = enlarge(make_model(family), growth())
        model.save_pretrained(str(tmp_path / family))
        again, report = AutoModelForCausalLM.from_pretrained(str(tmp_path / family), output_loading_info=True)
        assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert torch.equal(logits(again), logits(model))


def test_means_and_random_rows() -> None:
    old = matrices(make_model("llama"))
    mean = {name: one[: len(KNOWN)].mean(0) for name, one in old.items()}
    of_all = Growth(VOCABULARY, 96, KNOWN, dict.fromkeys(NEW, ()), "mean", 5)
    found = matrices(enlarge(make_model("llama"), of_all))
    for name, one in found.items():
        torch.testing.assert_close(one[NEW], mean[name].expand(4, -1), rtol=0, atol=1e-7)
    many = Growth(VOCABULARY, 4090, KNOWN, dict.fromkeys(range(90, 4090), ()), "random", 5)
    drawn = matrices(enlarge(make_model("llama"), many))
    for name, one in drawn.items():
        deviation = old[name][: len(KNOWN)].std(0, correction=0)
        assert ((one[90:].mean(0) - mean[name]).abs() < 5 * deviation / 4000**0.5).all()
        torch.testing.assert_close(one[90:].std(0), deviation, rtol=0.08, atol=0)
    assert not torch.equal(drawn["embedding"][90:], drawn["head"][90:])
    again = matrices(enlarge(make_model("llama"), many))
    assert all(torch.equal(again[name], drawn[name]) for name in drawn)
    other = matrices(enlarge(make_model("llama"), Growth(VOCABULARY, 96, KNOWN, PIECES, "random", 6)))
    assert not torch.equal(other["embedding"][90], again["embedding"][90])


def test_small_dtypes_are_rounded_once() -> None:
    """From float32 means, not from sums in bfloat16."""
    model = make_model("llama").to(torch.bfloat16)
    old = matrices(model)["embedding"]
    new = matrices(enlarge(model, growth()))["embedding"]
    assert new.dtype == torch.bfloat16
    assert torch.equal(new[90], old[[5, 6, 7]].double().mean(0).to(torch.bfloat16))


def test_quantized_layers_stay_and_a_quantized_head_is_refused(folders: dict[str, Path]) -> None:
    from ift.models.loading import load_base_model

    for name, scheme in (("llama", "nf4"), ("gpt_neox", "int8")):
        options: Any = {"quantization": Quantization(scheme)}  # type: ignore[arg-type]
        plain = load_base_model("model.base", str(folders[name]), "float32", **options)
        expected = logits(plain, IDS % VOCABULARY)
        model = enlarge(load_base_model("model.base", str(folders[name]), "float32", **options), growth())
        kept = [index for index in range(VOCABULARY) if index != 85]
        found = logits(model, IDS % VOCABULARY)
        torch.testing.assert_close(found[..., kept], expected[..., kept], rtol=0, atol=2e-6)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    broken = make_model("llama")
    broken.lm_head.weight = torch.nn.Parameter(broken.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match="holds no plain matrix"):
        enlarge(broken, growth())


@pytest.mark.parametrize("name", sorted(CHECKPOINTS))
def test_the_families_of_2023(name: str, tmp_path: Path) -> None:
    """Loaded from the original layout, enlarged, new rows trained, saved, loaded, merged."""
    from ift.models.families.normalized_head import NormalizedHead, settle_heads
    from ift.models.loading import load_base_model

    folder = write_checkpoint(CHECKPOINTS[name](), tmp_path / "base")
    model = load_base_model("model.base", str(folder), "float32")
    head, rows = type(model.lm_head), model.get_input_embeddings().weight.shape[0]
    known = tuple(range(rows - 4))
    new = {rows - 2: (5, 6), rows: (3, 4), rows + 1: ()}
    gained = Growth(rows, rows + 2, known, new, "pieces", 0)
    ids = torch.arange(7, 40)[None] % (rows - 4)
    expected, old = logits(model, ids), matrices(model)
    enlarge(model, gained)
    torch.testing.assert_close(logits(model, ids)[..., known], expected[..., known], rtol=0, atol=2e-5)
    for part, one in matrices(model).items():
        assert torch.equal(one[list(known)], old[part][list(known)])
        torch.testing.assert_close(one[rows], old[part][[3, 4]].mean(0), rtol=0, atol=1e-6)
    plain = copy.deepcopy(model)
    method = with_trained_rows(lora(r=2, lora_dropout=0), Vocabulary(), gained, model=model)
    text = torch.cat([ids, torch.tensor([list(new)])], dim=1)
    before = logits(plain, text)
    adapted = attach(model, method, seed=0, num_steps=None)
    settle_heads(adapted)
    torch.testing.assert_close(logits(adapted, text), before, rtol=0, atol=2e-5)
    assert type(adapted.get_output_embeddings().token_adapter.base_layer) is head, "which divides its rows, if any does"
    optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], lr=0.05)
    adapted.train()
    adapted(input_ids=text, labels=text, use_cache=False).loss.backward()
    optimizer.step()
    trained_logits = logits(adapted, text)
    assert (trained_logits - before).abs().max() > 0.01
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    again = load_adapter("model.adapter", plain, tmp_path / "adapter")
    torch.testing.assert_close(logits(again, text), trained_logits, rtol=0, atol=2e-5)
    merged = merge("RUN", again, "float32")
    assert type(merged.get_output_embeddings()) is not NormalizedHead
    torch.testing.assert_close(logits(merged, text), trained_logits, rtol=0, atol=2e-5)


# What trains which rows.


def trained(family: str, method: Any, *, train: Any = None, steps: int = 3) -> tuple[Any, Any]:
    """Return an enlarged model before, and with a method that has been trained."""
    model = enlarge(make_model(family), growth())
    changed = with_trained_rows(as_method(method), Vocabulary(train=train), growth(), model=model)
    before = copy.deepcopy(model)
    model = attach(model, changed, seed=0, num_steps=steps, training=True)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.05, weight_decay=0.1)
    ids = torch.cat([IDS[:, :20], torch.tensor([NEW, NEW])], dim=1)
    model.train()
    for _ in range(steps):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, model


@pytest.mark.parametrize("family", ["llama", "bloom", "codegen", "gemma2", "opt", "gpt2"])
def test_new_rows_are_trained_saved_loaded_and_merged(family: str, tmp_path: Path) -> None:
    before, model = trained(family, lora(r=2, lora_dropout=0))
    expected = logits(model)
    old = matrices(before)
    merged = merge("RUN", copy.deepcopy(model), "float32")
    new = matrices(merged)
    rest = [index for index in range(96) if index not in NEW]
    assert new.keys() == old.keys(), "a tied head is untied"
    for name in old.keys() - {"bias"}:
        assert torch.equal(new[name][rest], old[name][rest])
        assert all(not torch.equal(new[name][index], old[name][index]) for index in NEW)
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=2e-5)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    again = load_adapter("model.adapter", enlarge(make_model(family), growth()), tmp_path)
    assert torch.equal(logits(again), expected)


def test_peft_alone_reads_what_was_trained(tmp_path: Path) -> None:
    """A base model resized by transformers, whatever it puts into the new rows."""
    from peft import PeftModel

    for family in ("llama", "gpt2"):
        _, model = trained(family, lora(r=2, lora_dropout=0))
        model.save_pretrained(str(tmp_path / family), save_embedding_layers=False)
        plain = make_model(family)
        plain.resize_token_embeddings(96)
        again = PeftModel.from_pretrained(plain, str(tmp_path / family))
        columns = [index for index in range(96) if index not in (92, 94, 95)]  # no tokens
        torch.testing.assert_close(logits(again)[..., columns], logits(model)[..., columns], rtol=0, atol=2e-6)


def test_a_heads_bias_counts_where_some_of_its_rows_are_trained() -> None:
    """PEFT's own layer forgets it."""
    for settings in ({"lm_head": [4, 5]}, {"lm_head": [4, 5], "transformer.wte": [4, 5]}):
        model = make_model("codegen")
        torch.nn.init.normal_(model.lm_head.bias)
        expected = logits(model)
        config = LoraConfig(r=2, target_modules=["fc_in"], trainable_token_indices=settings)
        assert torch.equal(logits(attach(model, as_method(config), seed=0, num_steps=None)), expected)


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2", "codegen"])
def test_all_rows_are_trained_beside_an_adapter(family: str, tmp_path: Path) -> None:
    before, model = trained(family, lora(r=2, lora_dropout=0), train="all")
    expected, old = logits(model), matrices(before)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    again = load_adapter("model.adapter", enlarge(make_model(family), growth()), tmp_path)
    assert torch.equal(logits(again), expected)
    merged = merge("RUN", model, "float32")
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=2e-5)
    new = matrices(merged)
    assert new.keys() == old.keys(), "a tied head is untied"
    assert not torch.equal(new["embedding"][3], old["embedding"][3])


@pytest.mark.parametrize("tied", [True, False])
def test_encoder_and_decoder_share_the_new_rows(tied: bool) -> None:
    from transformers import AutoModelForSeq2SeqLM, T5Config

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    model = AutoModelForSeq2SeqLM.from_config(T5Config(vocab_size=VOCABULARY, **sizes))
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 32))
    ids, kept = IDS % 80, list(range(80))
    with torch.no_grad():
        before = model.eval()(input_ids=ids, decoder_input_ids=ids).logits
        enlarge(model, growth())
        after = model(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(after[..., kept], before[..., kept], rtol=0, atol=2e-6)
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
    assert (model.lm_head.weight is model.shared.weight) == tied and after.shape[-1] == 96
    for train in ("new", "all"):
        with pytest.raises(UserError, match="of which PEFT trains one"):
            with_trained_rows(lora(), Vocabulary(train=train), growth(), model=model)
    untold: Any = with_trained_rows(lora(), Vocabulary(), growth(), model=model).config
    assert untold.trainable_token_indices is None and not trains_rows(as_method(untold), model=model)
    attach(model, with_trained_rows(embeddings(), Vocabulary(), growth(), model=model), seed=0, num_steps=None)
    assert {name for name, one in model.named_parameters() if one.requires_grad} == {
        "shared.weight",
        *([] if tied else ["lm_head.weight"]),
    }


def test_what_stays_untrained_is_made_again(tmp_path: Path) -> None:
    _, model = trained("llama", lora(r=2, lora_dropout=0), train="none")
    assert num_trainable(model) == sum(
        one.numel() for name, one in model.named_parameters() if one.requires_grad and "lora_" in name
    )
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    again = load_adapter("model.adapter", enlarge(make_model("llama"), growth()), tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("family", ["llama", "bloom", "codegen"])
def test_embeddings_alone(family: str) -> None:
    """The first stage of Chinese-LLaMA."""
    for head in (True, False):
        before, model = trained(family, embeddings(head=head))
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        own = dict(before.named_parameters())
        moved = {name for name, one in model.named_parameters() if not torch.equal(one, own[name])}
        ends = ends_of(model)
        expected = {f"{ends.embedding}.weight"}
        if head and not tied:
            expected |= {name for name in own if name.startswith(f"{ends.head}.")}
        assert moved == expected


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_new_rows_and_nothing_else(family: str) -> None:
    """PEFT's own method for rows of the vocabulary, without being told which."""
    before, model = trained(family, TrainableTokensConfig())
    new, old = matrices(merge("RUN", model, "float32")), matrices(before)
    rest = [index for index in range(96) if index not in NEW]
    for name in old:
        assert torch.equal(new[name][rest], old[name][rest])
        assert all(not torch.equal(new[name][index], old[name][index]) for index in NEW)


def test_methods_of_base_weights() -> None:
    for method, train, moves in ((full(), None, True), (freeze(1), "all", True), (freeze(1), None, False)):
        before, model = trained("llama", method, train=train)
        same = torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
        assert same != moves
    assert not torch.equal(model.model.layers[1].mlp.up_proj.weight, before.model.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("method", "train", "told"),
    [
        (full(), "new", "full trains all rows of the embedding"),
        (embeddings(), "none", "embeddings trains all rows"),
        (freeze(1), "new", "not single rows"),
        (bitfit(), "new", "not single rows"),
        (ia3(), "new", "ia3 cannot train single rows"),
        (prefix(), "new", "prefix cannot train single rows"),
        (prefix(), "all", "prefix cannot train whole matrices"),
        (ln_tuning(), "all", "ln_tuning cannot train whole matrices"),
        (LoraConfig(modules_to_save=["lm_head"]), "new", "model.adapter.modules_to_save already says"),
        (LoraConfig(target_modules=["q_proj", "embed_tokens"]), "all", "model.adapter.target_modules already says"),
        (LoraConfig(trainable_token_indices=[3]), "new", "model.adapter.trainable_token_indices already says"),
    ],
)
def test_rows_that_a_method_cannot_train_are_refused(method: Any, train: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        with_trained_rows(as_method(method), Vocabulary(train=train), growth(), model=make_model("llama"))


# What new tokens are made of.


@pytest.fixture(scope="module")
def larger(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return larger_tokenizer(base, tmp_path_factory.mktemp("larger") / "tokenizer", 12, special=("<|im_start|>",))


def test_pieces_are_those_of_sentencepiece_without_a_dummy_prefix(
    base: Path, tokenizer_folder: Path, larger: Path
) -> None:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((tokenizer_folder / "tokenizer.model").read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    reference = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    found = growth_of(Vocabulary(tokenizer=str(larger)), str(base), seed=0)
    assert found is not None and found.new == list(range(420, 433)) and found.rows == 433
    tokenizer = AutoTokenizer.from_pretrained(str(larger))
    for index in range(420, 432):
        token = tokenizer.convert_ids_to_tokens(index)
        assert list(found.pieces[index]) == reference.encode(token.replace("▁", " ")), token
        assert len(found.pieces[index]) >= 2
    assert found.pieces[432] == (), "the spelling of a special token says nothing"
    assert "12 begin as the mean of their pieces, 1 (special or without pieces)" in found.note()
    assert any(tokenizer.convert_ids_to_tokens(index).startswith("▁") for index in found.new)


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not here")
def test_every_piece_of_the_published_chinese_vocabulary(tmp_path: Path) -> None:
    """LLaMA's tokenizer with the 17,953 pieces of Chinese-LLaMA that it lacks, cut as SentencePiece cuts them."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from transformers import LlamaConfig

    one, other = sentencepiece_model_pb2.ModelProto(), sentencepiece_model_pb2.ModelProto()
    one.ParseFromString((SHARED / "llama_tokenizer.model").read_bytes())
    other.ParseFromString((SHARED / "chinese_sp.model").read_bytes())
    one.normalizer_spec.add_dummy_prefix = False
    reference = sentencepiece.SentencePieceProcessor(model_proto=one.SerializeToString())
    one.normalizer_spec.add_dummy_prefix = True
    for name in ("base", "larger"):
        (tmp_path / name).mkdir()
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "base" / "tokenizer.model").write_bytes(one.SerializeToString())
    LlamaConfig(vocab_size=32_000).save_pretrained(str(tmp_path / "base"))
    known = {piece.piece for piece in one.pieces}
    for piece in other.pieces:
        if piece.piece not in known:
            one.pieces.add(piece=piece.piece, score=0)
    (tmp_path / "larger" / "tokenizer.model").write_bytes(one.SerializeToString())
    found = growth_of(Vocabulary(tokenizer=str(tmp_path / "larger")), str(tmp_path / "base"), seed=0)
    assert found is not None and found.rows == 49_953 and found.new == list(range(32_000, 49_953))
    for index, pieces in found.pieces.items():
        assert list(pieces) == reference.encode(one.pieces[index].piece.replace("▁", " "))


def test_unseen_characters_begin_as_their_bytes(base: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(str(base))
    tokenizer.add_tokens(["龘", "river 龘"])
    tokenizer.save_pretrained(str(tmp_path / "own"))
    found = growth_of(Vocabulary(tokenizer=str(tmp_path / "own")), str(base), seed=0)
    assert found is not None
    names = [tokenizer.convert_ids_to_tokens(list(one)) for one in found.pieces.values()]
    own = [f"<0x{byte:02X}>" for byte in "龘".encode()]
    assert names[0] == own and names[1][-4:] == ["▁", *own] and "".join(names[1][:-4]) == "river"


def byte_level_base(folder: Path) -> Path:
    """A tokenizer of bytes with a config beside it, and rows for padding."""
    from transformers import LlamaConfig

    make_byte_level(folder, [" ".join(row.values()) for row in make_rows(60)])
    size = len(AutoTokenizer.from_pretrained(str(folder)))
    LlamaConfig(vocab_size=size + 5, hidden_size=8, num_attention_heads=2).save_pretrained(str(folder))
    return folder


def test_byte_level_tokens_take_the_padding_first(tmp_path: Path) -> None:
    base = byte_level_base(tmp_path / "base")
    old: Any = AutoTokenizer.from_pretrained(str(base))
    larger = larger_tokenizer(base, tmp_path / "larger", 7)
    new: Any = AutoTokenizer.from_pretrained(str(larger))
    new.add_tokens([" 你好 river"])
    new.save_pretrained(str(larger))
    found = growth_of(Vocabulary(tokenizer=str(larger)), str(base), seed=0)
    assert found is not None and found.new == list(range(len(old), len(old) + 8))
    assert (found.rows_before, found.rows) == (len(old) + 5, len(old) + 8) and found.known == tuple(range(len(old)))
    pairs = frequent_pairs(base, 7)
    for index, pair in zip(found.new, pairs, strict=False):
        assert old.convert_ids_to_tokens(list(found.pieces[index])) == list(pair)
    assert old.decode(list(found.pieces[found.new[-1]])) == " 你好 river"
    fewer = growth_of(Vocabulary(tokenizer=str(larger_tokenizer(base, tmp_path / "few", 2))), str(base), seed=0)
    assert fewer is not None and fewer.rows == fewer.rows_before
    padded = growth_of(Vocabulary(tokenizer=str(larger), pad_to_multiple_of=64), str(base), seed=0)
    assert padded is not None and padded.rows == 448 and padded.fingerprint != found.fingerprint


def test_special_tokens_are_added_to_the_base_models_own(base: Path) -> None:
    names = ["<|im_start|>", "<|im_end|>", "</s>", "<|im_start|>"]
    tokenizer = enlarged_tokenizer(str(base), EnlargedTokenizer(special_tokens=names))
    assert len(tokenizer) == 422
    assert tokenizer("a<|im_end|>b", add_special_tokens=False).input_ids.count(421) == 1
    found = growth_of(Vocabulary(special_tokens=names), str(base), seed=0)
    assert found is not None and found.pieces == {420: (), 421: ()}
    ordinary = AutoTokenizer.from_pretrained(str(base)).convert_ids_to_tokens(300)
    with pytest.raises(UserError, match="is an ordinary token"):
        growth_of(Vocabulary(special_tokens=[ordinary]), str(base), seed=0)


def test_a_base_model_whose_tokenizer_outgrew_it_gains_rows(base: Path, tmp_path: Path) -> None:
    """As LLaMA with a padding token that only its tokenizer has."""
    import shutil

    folder = Path(shutil.copytree(base, tmp_path / "base"))
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[PAD]"]})
    tokenizer.save_pretrained(str(folder))
    found = growth_of(Vocabulary(), str(folder), seed=0)
    assert found is not None and found.new == [420] and found.rows == 421


def test_nothing_new_changes_nothing(base: Path) -> None:
    assert growth_of(None, str(base), seed=0) is None
    assert growth_of(Vocabulary(tokenizer=str(base)), str(base), seed=0) is None
    model = make_model("llama")
    embedding = model.model.embed_tokens.weight
    assert enlarge(model, None).model.embed_tokens.weight is embedding


def edited(larger: Path, target: Path, change: Callable[[dict[str, int]], None]) -> str:
    import shutil

    folder = Path(shutil.copytree(larger, target))
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(described["model"]["vocab"])
    described["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    return str(folder)


def test_tokens_that_moved_or_are_gone_are_refused(base: Path, larger: Path, tmp_path: Path) -> None:
    one, other = AutoTokenizer.from_pretrained(str(base)).convert_ids_to_tokens([300, 310])

    def swap(vocabulary: dict[str, int]) -> None:
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    def remove(vocabulary: dict[str, int]) -> None:
        vocabulary["another"] = vocabulary.pop(other)

    for name, change, told in (
        ("swapped", swap, f"has the token '{one}' under id 310, and the tokenizer of model.base under 300"),
        ("removed", remove, f"lacks '{other}' (id 310)"),
    ):
        folder = edited(larger, tmp_path / name, change)
        with pytest.raises(UserError) as caught:
            growth_of(Vocabulary(tokenizer=folder), str(base), seed=0)
        assert told in str(caught.value) and folder in str(caught.value)


def test_settings_are_checked() -> None:
    for settings, told in (
        ({"initialization": "piece"}, "Did you mean 'pieces'"),
        ({"train": "some"}, "model.vocabulary.train"),
        ({"pad_to_multiple_of": 0}, "less than 1"),
    ):
        with pytest.raises(UserError, match=told):
            Vocabulary(**settings)


def test_the_same_rows_have_the_same_fingerprint() -> None:
    assert growth().fingerprint == growth(seed=6).fingerprint, "nothing is drawn"
    assert growth("random").fingerprint != growth("random", seed=6).fingerprint
    assert len({growth(one).fingerprint for one in ("pieces", "mean", "random")}) == 3


def test_loss_of_the_enlarged_head_is_what_its_rows_say() -> None:
    """Trained rows of head and embedding take part in the loss, and get the gradient of a plain model."""
    _, model = trained("llama", lora(r=2, lora_dropout=0), steps=1)
    plain = merge("RUN", copy.deepcopy(model), "float32")
    plain.requires_grad_(True)
    ids = torch.cat([IDS[:, :9], torch.tensor([NEW, NEW])], dim=1)
    for one in (model, plain):
        one.zero_grad()
        out = one(input_ids=ids, use_cache=False).logits
        F.cross_entropy(out[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    own = {name: value.grad for name, value in model.named_parameters() if "trainable_tokens_delta" in name}
    assert len(own) == 2
    for name, gradient in own.items():
        expected = plain.lm_head.weight.grad if "lm_head" in name else plain.model.embed_tokens.weight.grad
        torch.testing.assert_close(gradient, expected[NEW], rtol=1e-4, atol=1e-7)
