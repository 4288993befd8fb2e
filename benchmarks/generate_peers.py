"""Who takes part in `generate.py`, each in a process of its own: FastServe, transformers, llama.cpp, OpenVINO GenAI and
CTranslate2, all from one Hugging Face folder of random weights.

The peers live in a Python of their own:

    python -m venv peers
    peers/bin/pip install "optimum-intel[openvino]==2.2.0" openvino-genai ctranslate2 llama-cpp-python gguf

An unpinned optimum-intel is an old one that fits a new transformers and does not work. Its torch and transformers are
other than FastServe's, which is why transformers itself runs in the Python of the benchmark; of the peers only exports
are made with them. `datasets`, where something brings it, must be uninstalled: it does not fit this huggingface-hub.
llama-cpp-python is compiled for the machine, which takes two cores ten minutes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

SIZES: dict[str, dict[str, Any]] = {
    "15m": {"layers": 8, "dim": 384, "context": 512, "vocabulary": 8_192},
    "125m": {"layers": 16, "dim": 768, "context": 2_048, "vocabulary": 32_768},
    "500m": {"layers": 26, "dim": 1_280, "context": 2_048, "vocabulary": 32_768},
}
LIVELY = 2.5
"""Times their first values that weights are: as they start, a network says the last word over and over."""
CLASSES = {"float32": ("float32",), "16 bits": ("float16", "bfloat16"), "8 bits": ("int8",), "4 bits": ("int4",)}
Texts = list[list[int]]
Write = Callable[[Texts, int], Texts]
"""Prompts and how many tokens to write after each, to what was written after each."""


def cores() -> int:
    return len(os.sched_getaffinity(0))


class Failed(Exception):
    """A contestant gives no answer, or a wrong one."""


# A contestant's process


@dataclass
class Worker:
    """A process that answers each line with a line. Its answers come through a thread, so that waiting can end."""

    name: str
    process: subprocess.Popen[str]
    complaints: Path
    answers: queue.SimpleQueue[Any]

    @classmethod
    def start(cls, name: str, folder: Path, python: str) -> Worker:
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        command = [python, "-W", "ignore", __file__, name, str(folder)]
        complaints, pipe = folder / f"{name}.log", subprocess.PIPE
        with complaints.open("w") as file:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=file, text=True, env=environment)
        worker = cls(name, process, complaints, queue.SimpleQueue())
        threading.Thread(target=worker._listen, daemon=True).start()
        return worker

    def _listen(self) -> None:
        for line in _pipe(self.process.stdout):
            if line.startswith('{"answer"'):
                self.answers.put(json.loads(line)["answer"])
        self.answers.put(None)

    def ask(self, question: Any, seconds: float) -> Any:
        """Its answer. Failed, and the process has ended, where there is none."""
        try:
            _pipe(self.process.stdin).write(json.dumps(question) + "\n")
            _pipe(self.process.stdin).flush()
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            self.process.kill()
            self.end()
            raise Failed(f"no answer in {seconds:.0f} s") from None
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise Failed(self.end() or "it ended without a word")
        return answer

    def written(self, prompts: Texts, tokens: int, seconds: float) -> tuple[float, Texts]:
        """How many seconds it took, and the texts. Failed where they have not so many tokens."""
        taken, texts = self.ask([prompts, tokens], seconds)
        lengths = [len(text) for text in texts]
        if lengths != [tokens] * len(prompts):
            self.end()
            raise Failed(
                f"it wrote {lengths} tokens where {tokens} after each of {len(prompts)} prompts were asked for"
            )
        return taken, texts

    def end(self) -> str:
        """The last line that it complained with."""
        with contextlib.suppress(BrokenPipeError):
            _pipe(self.process.stdin).close()
        self.process.wait()
        lines = self.complaints.read_text("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise ValueError("the process has no pipe")
    return pipe


def work(name: str, folder: Path) -> None:
    """Answer the lines of standard input: in how many seconds it was ready, or how long it wrote and what."""
    begun = time.perf_counter()
    write = CONTESTANTS[name].make(folder, CONTESTANTS[name].precision)
    for line in sys.stdin:
        question = json.loads(line)
        if question == "ready":
            answer: Any = time.perf_counter() - begun
        else:
            started = time.perf_counter()
            texts = write(*question)
            answer = [time.perf_counter() - started, texts]
        print("\n" + json.dumps({"answer": answer}), flush=True)


# The network


class Weights(NamedTuple):
    """How many there are, and how many of them are neither embedding nor head."""

    all: int
    hidden: int


def options_of(size: str) -> tuple[dict[str, Any], int]:
    options = dict(SIZES[size])
    return options, options.pop("vocabulary")


def size_of(folder: Path) -> str:
    return (folder / "size").read_text()


def hidden_weights(size: str) -> Weights:
    from fastserve.models.decoder import DecoderOptions, hidden_weights

    options, vocabulary = options_of(size)
    hidden = hidden_weights(DecoderOptions(**options))
    return Weights(hidden + vocabulary * options["dim"], hidden)


def save(size: str, folder: Path) -> None:
    """A Hugging Face folder with random weights."""
    import torch
    from safetensors.torch import save_file

    from fastserve.models.decoder import Decoder, DecoderOptions
    from fastserve.models.network import NetworkShape

    torch.manual_seed(0)
    options, vocabulary = options_of(size)
    network = Decoder(DecoderOptions(**options), NetworkShape({"tokens": vocabulary}, vocabulary))
    for name, content in network.files().items():
        (folder / name).write_text(content)
    (folder / "size").write_text(size)
    weights = {
        name: weight * LIVELY if ".layers." in name and weight.ndim == 2 else weight
        for name, weight in network.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


# Contestants


def fastserve(folder: Path, precision: str) -> Write:
    import torch
    from safetensors.torch import load_file

    from fastserve.generation.engine import Engine
    from fastserve.generation.orders import EngineOptions, Order
    from fastserve.generation.sampling import Sampling
    from fastserve.models.decoder import Decoder, DecoderOptions
    from fastserve.models.network import NetworkShape

    torch.set_num_threads(cores())
    options, vocabulary = options_of(size_of(folder))
    network = Decoder(DecoderOptions(**options), NetworkShape({"tokens": vocabulary}, vocabulary))
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.eval().requires_grad_(False)
    engine = Engine(network, None, EngineOptions(precision=precision, prefix_cache=False, speculation=0))
    engine.prepare()

    def write(prompts: Texts, tokens: int) -> Texts:
        for place, prompt in enumerate(prompts):
            engine.add(Order(str(place), prompt, Sampling(temperature=0, max_tokens=tokens)))
        texts: Texts = [[] for _ in prompts]
        while engine.has_work:
            for output in engine.step():
                texts[int(output.id)].append(output.token)
        return texts

    return write


def _transformers(folder: Path, precision: str) -> Any:
    import torch
    import transformers

    torch.set_num_threads(cores())
    automatic: Any = transformers.AutoModelForCausalLM
    return automatic.from_pretrained(folder, dtype=getattr(torch, precision), attn_implementation="sdpa").eval()


def generate(folder: Path, precision: str) -> Write:
    import torch

    model = _transformers(folder, precision)

    def write(prompts: Texts, tokens: int) -> Texts:
        ids = torch.tensor(prompts)
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
        )
        texts: Texts = found[:, ids.shape[1] :].tolist()
        return texts

    return write


def continuous(folder: Path, precision: str) -> Write:
    import transformers

    generation, batching = cast(Any, transformers.GenerationConfig), cast(Any, transformers.ContinuousBatchingConfig)
    model = _transformers(folder, precision)
    manager = model.init_continuous_batching(
        generation(do_sample=False, eos_token_id=-1, pad_token_id=0),
        batching(allow_block_sharing=False, num_blocks=64, max_batch_tokens=8_192),
    )
    manager.start()

    def write(prompts: Texts, tokens: int) -> Texts:
        names = manager.add_requests(inputs=prompts, max_new_tokens=tokens)
        texts: dict[str, list[int]] = {}
        while len(texts) < len(prompts):
            found = manager.get_result(timeout=1)
            if found is not None and found.is_finished():
                texts[found.request_id] = list(found.generated_tokens)
            elif found is None and not manager.is_running():
                raise RuntimeError("its thread has ended")
        return [texts[name] for name in names]

    return write


def openvino(folder: Path, precision: str) -> Write:
    import numpy as np
    import openvino_genai as genai
    from openvino import Tensor

    kept = {"float32": "f32", "bfloat16": "bf16", "int8": "u8", "int4": "u8"}[precision]
    properties = {"INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16", "KV_CACHE_PRECISION": kept}
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(
        str(_openvino_folder(folder, precision)), scheduler_config=scheduler, device="CPU", properties=properties
    )

    def write(prompts: Texts, tokens: int) -> Texts:
        asked = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        ids = [Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        return [list(one.m_generation_ids[0]) for one in pipeline.generate(ids, [asked] * len(ids))]

    return write


def _openvino_folder(folder: Path, precision: str) -> Path:
    import openvino as runtime
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    exported = folder / f"openvino-{precision}"
    forms: dict[str, dict[str, Any]] = {"int8": {"bits": 8}, "int4": {"bits": 4, "sym": True, "group_size": 32}}
    rounded = OVWeightQuantizationConfig(**forms[precision]) if precision in forms else None
    model = OVModelForCausalLM.from_pretrained(
        folder, export=True, compile=False, quantization_config=rounded, load_in_8bit=False
    )
    if precision == "bfloat16":
        model.half()
    model.save_pretrained(exported)
    tokenizer, back = convert_tokenizer(_tokenizer(folder), with_detokenizer=True)
    runtime.save_model(tokenizer, exported / "openvino_tokenizer.xml")
    runtime.save_model(back, exported / "openvino_detokenizer.xml")
    return exported


def _tokenizer(folder: Path) -> Any:
    """A word for each token, for those who will not do without a tokenizer."""
    import tokenizers
    import transformers

    words = {f"t{number}": number for number in range(options_of(size_of(folder))[1])}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(words, [], unk_token="t0"))
    make = cast(Any, transformers.PreTrainedTokenizerFast)
    return make(tokenizer_object=model, unk_token="t0", eos_token="t1", bos_token="t2")


def ctranslate2(folder: Path, precision: str) -> Write:
    import ctranslate2 as library
    from ctranslate2.converters import TransformersConverter

    exported = folder / "ctranslate2"
    if not exported.exists():
        _tokenizer(folder).save_pretrained(folder)
        TransformersConverter(str(folder)).convert(str(exported))
    generator = library.Generator(str(exported), device="cpu", compute_type=precision, intra_threads=cores())

    def write(prompts: Texts, tokens: int) -> Texts:
        words = [[f"t{number}" for number in prompt] for prompt in prompts]
        found = generator.generate_batch(
            words, max_length=tokens, min_length=tokens, include_prompt_in_result=False, beam_size=1
        )
        return [list(one.sequences_ids[0]) for one in found]

    return write


# llama.cpp


def llama(folder: Path, precision: str) -> Write:
    """All texts in one call of `llama_decode` a step, each a sequence of its own."""
    import llama_cpp as library

    file = _gguf(folder, precision)
    library.llama_backend_init()
    options = library.llama_model_default_params()
    options.n_gpu_layers = 0
    model = library.llama_model_load_from_file(str(file).encode(), options)
    sequences = functools.lru_cache(1)(functools.partial(Sequences, library, model, precision))
    return lambda prompts, tokens: sequences(len(prompts)).write(prompts, tokens)


class Sequences:
    """A context of llama.cpp in which `count` texts of at most `LENGTH` tokens are written at once."""

    LENGTH = 256

    def __init__(self, library: Any, model: Any, precision: str, count: int) -> None:
        options = library.llama_context_default_params()
        options.n_ctx, options.n_seq_max = count * self.LENGTH, count
        options.n_batch = count * self.LENGTH
        options.n_threads = options.n_threads_batch = cores()
        if precision == "float32":
            options.type_k = options.type_v = library.GGML_TYPE_F32
        self.library, self.vocabulary = library, library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self.context = library.llama_init_from_model(model, options)
        self.batch = library.llama_batch_init(options.n_batch, 0, 1)

    def write(self, prompts: Texts, tokens: int) -> Texts:
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        texts: Texts = [[] for _ in prompts]
        new, starts = prompts, [0] * len(prompts)
        for _ in range(tokens):
            chosen = self._read(new, starts)
            for text, token in zip(texts, chosen, strict=True):
                text.append(token)
            starts = [start + len(read) for start, read in zip(starts, new, strict=True)]
            new = [[token] for token in chosen]
        return texts

    def _read(self, new: Texts, starts: list[int]) -> list[int]:
        """What follows each sequence once these tokens of it are read."""
        batch, ends, place = self.batch, [], 0
        for sequence, (ids, start) in enumerate(zip(new, starts, strict=True)):
            for offset, token in enumerate(ids):
                batch.token[place], batch.pos[place] = token, start + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
                batch.logits[place] = offset == len(ids) - 1
                place += 1
            ends.append(place - 1)
        batch.n_tokens = place
        failed = self.library.llama_decode(self.context, batch)
        if failed:
            raise RuntimeError(f"llama_decode answers {failed}")
        return [self._best(end) for end in ends]

    def __del__(self) -> None:
        self.library.llama_batch_free(self.batch)
        self.library.llama_free(self.context)

    def _best(self, place: int) -> int:
        import numpy as np

        logits = self.library.llama_get_logits_ith(self.context, place)
        return int(
            np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.vocabulary,)).argmax()
        )


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf(folder: Path, precision: str) -> Path:
    """The folder's Llama as a file of llama.cpp, without a tokenizer."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    kind = {"float32": kinds.F32, "bfloat16": kinds.BF16, "int8": kinds.Q8_0, "int4": kinds.Q4_0}[precision]
    table = kinds.Q8_0 if precision == "int4" else kind
    file = folder / f"{precision}.gguf"
    options = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(options["max_position_embeddings"])
    writer.add_embedding_length(options["hidden_size"])
    writer.add_block_count(options["num_hidden_layers"])
    writer.add_feed_forward_length(options["intermediate_size"])
    writer.add_head_count(options["num_attention_heads"])
    writer.add_head_count_kv(options["num_key_value_heads"])
    writer.add_rope_dimension_count(options["head_dim"])
    writer.add_rope_freq_base(options["rope_theta"])
    writer.add_layer_norm_rms_eps(options["rms_norm_eps"])
    writer.add_vocab_size(options["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, weight in _gguf_weights(folder, options):
        hidden = table if name.startswith("token_embd") else kind
        matrix = hidden if weight.ndim == 2 else kinds.F32
        writer.add_tensor(name, gguf.quantize(weight, matrix), raw_dtype=matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _gguf_weights(folder: Path, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """llama.cpp turns neighboring features by an angle, where the folder's form turns those half a head apart."""
    from safetensors.numpy import load_file

    heads = {"attn_q": options["num_attention_heads"], "attn_k": options["num_key_value_heads"]}
    for name, weight in load_file(folder / "model.safetensors").items():
        inside = name.removesuffix(".weight").removeprefix("model.layers.")
        layer, _, part = inside.partition(".") if inside[0].isdigit() else ("", "", inside)
        found = GGUF_NAMES[part]
        if found in heads:
            halves = weight.reshape(heads[found], 2, -1, weight.shape[1])
            weight = halves.swapaxes(1, 2).reshape(weight.shape)
        yield (f"blk.{layer}." if layer else "") + f"{found}.weight", weight


@dataclass(frozen=True)
class Contestant:
    """is_peer: whether it needs the peers' Python."""

    make: Callable[[Path, str], Write]
    precision: str
    is_peer: bool = False

    @property
    def bytes(self) -> float:
        """Of a weight."""
        return {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "int4": 0.5}[self.precision]


CONTESTANTS = {
    "fastserve float32": Contestant(fastserve, "float32"),
    "fastserve float16": Contestant(fastserve, "float16"),
    "fastserve bfloat16": Contestant(fastserve, "bfloat16"),
    "fastserve int8": Contestant(fastserve, "int8"),
    "fastserve int4": Contestant(fastserve, "int4"),
    "transformers generate float32": Contestant(generate, "float32"),
    "transformers generate bfloat16": Contestant(generate, "bfloat16"),
    "transformers continuous batching float32": Contestant(continuous, "float32"),
    "transformers continuous batching bfloat16": Contestant(continuous, "bfloat16"),
    "openvino genai float32": Contestant(openvino, "float32", is_peer=True),
    "openvino genai bfloat16": Contestant(openvino, "bfloat16", is_peer=True),
    "openvino genai int8": Contestant(openvino, "int8", is_peer=True),
    "openvino genai int4": Contestant(openvino, "int4", is_peer=True),
    "ctranslate2 float32": Contestant(ctranslate2, "float32", is_peer=True),
    "ctranslate2 bfloat16": Contestant(ctranslate2, "bfloat16", is_peer=True),
    "ctranslate2 int8": Contestant(ctranslate2, "int8", is_peer=True),
    "llama.cpp float32": Contestant(llama, "float32", is_peer=True),
    "llama.cpp bfloat16": Contestant(llama, "bfloat16", is_peer=True),
    "llama.cpp int8": Contestant(llama, "int8", is_peer=True),
    "llama.cpp int4": Contestant(llama, "int4", is_peer=True),
}


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
