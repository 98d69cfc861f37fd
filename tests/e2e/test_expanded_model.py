"""A model expanded by identity blocks, saved and loaded again, beside its source."""

import json
import subprocess
import sys
from pathlib import Path

#: A small model of the demo's architecture with random weights, and how far the two differ. In a process of its own:
#: torch would stay in this one.
COMPARE = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from firstdraft.local.export import expand

tokenizer_from, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2)
LlamaForCausalLM(config).save_pretrained(source)
tokenizer.save_pretrained(source)
expand(source, target, 3)
ids = tokenizer("Copper is a metal that", return_tensors="pt").input_ids
with torch.no_grad():
    small, large = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (source, target))
print("\\n", (small - large).abs().max().item(), small.abs().max().item())
"""


def test_an_expanded_model_has_more_layers_and_the_same_logits_once_loaded(
    cloud_model_path: str, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    command = [sys.executable, "-c", COMPARE, cloud_model_path, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    change, largest = (float(number) for number in done.stdout.splitlines()[-1].split())
    assert change == 0.0
    assert largest > 0.0
    layers = [json.loads((path / "config.json").read_text())["num_hidden_layers"] for path in (source, target)]
    assert layers == [2, 6]
