"""Converts models, as a process of its own (started by firstdraft/local/model_store.py).

python -m firstdraft.local.export quantize GGUF_FILE GGUF_FILE    for the edge
python -m firstdraft.local.export float32 GGUF_FILE FOLDER        for the cloud
python -m firstdraft.local.export expand FOLDER FOLDER TIMES      for the cloud, at TIMES the cost
"""

import copy
import sys
from pathlib import Path
from typing import Any

#: The field of a GGUF file that names its pre-tokenizer: how a text is split before tokenization.
PRE_TOKENIZER_FIELD = "tokenizer.ggml.pre"
#: The pre-tokenizer of SmolLM2, the demo's model: single digits, and GPT-2's rule for the rest.
SMOLLM = "smollm"
#: The prompt on which an expanded model is compared with its source.
_PROBE = "The capital of France is"


class NotTheSameModel(Exception):
    """The expanded model's logits differ from its source's: it must not be used."""


def export(source: Path, target: Path) -> None:
    """Write a GGUF file's weights as float32, with its tokenizer and chat template."""
    import torch  # noqa: PLC0415 - heavy, and only here
    from transformers import AutoModelForCausalLM, GgufConfig  # noqa: PLC0415

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    config = GgufConfig(dequantize=True)
    AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=config).save_pretrained(
        target
    )
    tokenizer_of(source).save_pretrained(target)


def tokenizer_of(source: Path) -> Any:
    """A GGUF file's tokenizer, with the same tokens for a text as llama.cpp.

    Transformers reads the vocabulary and merges from the file, but not the pre-tokenizer.
    """
    from gguf import GGUFReader  # noqa: PLC0415
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    pre_tokenizer = GGUFReader(source).fields.get(PRE_TOKENIZER_FIELD)
    if pre_tokenizer is not None and pre_tokenizer.contents() == SMOLLM:
        digits = Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([digits, ByteLevel(add_prefix_space=False)])
    return tokenizer


def expand(source: Path, target: Path, factor: int) -> None:
    """Write a Llama-like model with `factor` times the layers and bitwise the same logits. Raises `NotTheSameModel`."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer(_PROBE, return_tensors="pt").input_ids
    with torch.no_grad():
        before = model(ids).logits
        model.model.layers = torch.nn.ModuleList(_with_identity_blocks(model.model.layers, factor))
        model.config.num_hidden_layers = len(model.model.layers)
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = [model.config.layer_types[0]] * len(model.model.layers)
        change = (model(ids).logits - before).abs().max().item()
    if change != 0.0:
        raise NotTheSameModel(f"expanding {source} {factor} times changed a logit by {change}")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _with_identity_blocks(layers: Any, factor: int) -> list[Any]:
    """Each layer, followed by copies whose output projections are zero, so that they add nothing."""
    import torch  # noqa: PLC0415

    expanded = []
    for layer in layers:
        expanded.append(layer)
        for _ in range(factor - 1):
            block = copy.deepcopy(layer)
            torch.nn.init.zeros_(block.self_attn.o_proj.weight)
            torch.nn.init.zeros_(block.mlp.down_proj.weight)
            expanded.append(block)
    for index, layer in enumerate(expanded):
        layer.self_attn.layer_idx = index
    return expanded


def main(step: str, source: Path, target: Path, *options: str) -> None:
    """Run one step."""
    if step == "quantize":
        from workers.edge.llama import quantize  # noqa: PLC0415 - llama.cpp is not needed for the other steps

        quantize(source, target)
    elif step == "float32":
        export(source, target)
    elif step == "expand":
        expand(source, target, int(options[0]))
    else:
        sys.exit(f"unknown step {step!r}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
