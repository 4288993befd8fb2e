"""Small tokenizers in the forms of known model families, as folders that transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["床前明月光，疑是地上霜。", "To be, or not to be: that is the question.\n", "don't  stop, 2026! naïve"] * 20
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _byte_level(pre: pre_tokenizers.PreTokenizer, special: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(special)
    return made


def _pieces(special: list[str], *, prepend: bool) -> Tokenizer:
    """BPE of SentencePiece: bytes where a character is not known, spaces written as U+2581."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special + bytes_, show_progress=False)
    trained.train_from_iterator(TEXTS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    made = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    blank = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blank]) if prepend else blank
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepend else steps)
    made.add_special_tokens(special)
    return made


def gpt2() -> tuple[Tokenizer, dict[str, Any]]:
    end = "<|endoftext|>"
    made = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), [end])
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    return made, {"bos_token": end, "eos_token": end, "unk_token": end}


def qwen() -> tuple[Tokenizer, dict[str, Any]]:
    pre = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    made = _byte_level(pre, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.normalizer = normalizers.NFC()
    made.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokens = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return made, {**tokens, "chat_template": CHATML, "add_bos_token": False}


def llama3() -> tuple[Tokenizer, dict[str, Any]]:
    begin = "<|begin_of_text|>"
    pre = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    made = _byte_level(pre, [begin, "<|end_of_text|>", "<|eot_id|>"])
    made.model.ignore_merges = True
    number = made.token_to_id(begin)
    made.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, number)])
    eos = {"__type": "AddedToken", "content": "<|end_of_text|>", "special": True}
    return made, {"bos_token": begin, "eos_token": eos}


def llama2() -> tuple[Tokenizer, dict[str, Any]]:
    made = _pieces(["<unk>", "<s>", "</s>"], prepend=True)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}


def gemma() -> tuple[Tokenizer, dict[str, Any]]:
    made = _pieces(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], prepend=False)
    made.add_tokens([AddedToken("▁▁", normalized=False)])
    return made, {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}


def metaspace() -> tuple[Tokenizer, dict[str, Any]]:
    made = _pieces(["<unk>", "<s>", "</s>"], prepend=False)
    made.normalizer = None  # type: ignore[assignment]
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def unigram() -> tuple[Tokenizer, dict[str, Any]]:
    """Whose special tokens are pieces like any other, so that a text can write them."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    pieces += [("▁", -3.0), ("▁to", -4.0), ("be", -4.0), *((chr(point), -6.0) for point in range(33, 127))]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


FAMILIES: dict[str, Callable[[], tuple[Tokenizer, dict[str, Any]]]] = {
    one.__name__: one for one in (gpt2, qwen, llama3, llama2, gemma, metaspace, unigram)
}


def folder_of(family: str, folder: Path) -> Path:
    """A folder of that family; its chat template, if any, in a file of its own."""
    made, settings = FAMILIES[family]()
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    template = settings.pop("chat_template", None)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def library(folder: Path) -> tokenizers.Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
