#!/bin/sh
# Resolves the ranges of pyproject.toml into the locked files of this folder, with hashes. Needs uv.
#
#   requirements/lock.sh                        keep the versions that are locked, where the ranges allow them
#   requirements/lock.sh --upgrade              take the newest ones
#   requirements/lock.sh --upgrade-package X    take the newest X
#
# build.txt      what installs, and what builds this package and the few that come without a wheel
# runtime.txt    flows, workers, Prefect's server and MLflow
# serving.txt    what the inference server needs besides; the image has these two
# dev.txt        what tests, linters and exports need besides; `make install` installs all three
# docs.txt       what the site of docs/ needs besides; `make docs` installs it, nothing else does
# torch.txt      torch as PyPI has it: with CUDA on Linux, and then NVIDIA's libraries
# torch-cpu.txt  the CPU build of torch for Linux, which lies on an index of its own: TORCH_INDEX
#
# torch is in files of its own because the two builds have the same version and differ in all that they need.
set -eu
cd "$(dirname "$0")/.."
index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT

compile() { # compile FILE ARGUMENTS: resolve into FILE, preferring the versions that it has
    target=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --output-file "$target" "$@" > /dev/null
}

lock() { # lock NAME ARGUMENTS: resolve into a file of this folder, at the versions of the whole
    name=$1
    shift
    : > "$scratch/$name"
    compile "$scratch/$name" --constraint "$scratch/all.txt" "$@"
    { echo '# Made by requirements/lock.sh from pyproject.toml; do not edit.'; cat "$scratch/$name"; } > "requirements/$name"
}

names() { sed -nE 's/^([a-z0-9-]+)==.*/\1/p' "$@"; }
without() { for package; do printf ' --no-emit-package %s' "$package"; done; }

for name in build torch runtime serving dev docs; do cat "requirements/$name.txt"; done > "$scratch/all.txt"
compile "$scratch/all.txt" "$@" --all-extras --group build --group docs pyproject.toml
cuda=$(sed -nE 's/^(torch|triton|cuda-[a-z0-9-]+|nvidia-[a-z0-9-]+)==.*/\1/p' "$scratch/all.txt")
others=$(names "$scratch/all.txt" | grep -vxF "$cuda")
# shellcheck disable=SC2046,SC2086  # lists of words
{
    lock torch.txt $(without $others) --all-extras pyproject.toml
    lock runtime.txt $(without $cuda) --extra cluster pyproject.toml
    done=$(names requirements/runtime.txt)
    lock serving.txt $(without $cuda $done) --extra cluster --extra otel pyproject.toml
    done="$done $(names requirements/serving.txt)"
    lock dev.txt $(without $cuda $done) --all-extras pyproject.toml
    done="$done $(names requirements/dev.txt)"
    lock docs.txt $(without $done) --group docs
    lock build.txt --group build
}
sed -nE 's/^(torch==[^ ;]+).*/\1+cpu/p' requirements/torch.txt > "$scratch/cpu.in"
lock torch-cpu.txt --extra-index-url "$index" --no-deps "$scratch/cpu.in"
