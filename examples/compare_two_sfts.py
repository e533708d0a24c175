"""Say where an SFT changes its base, and how two of them meet: `python examples/compare_two_sfts.py FOLDER FOLDER`."""

import sys

from ltsft import interference, load_sft, sparsity

first, second = load_sft(sys.argv[1]), load_sft(sys.argv[2])
print(first, second, sep="\n")
for layer, share in sparsity(first).layers.items():
    print(f"{layer}: {share.density:.1%} of the weights")
met = interference(first, second).overall
print(f"weights in both supports: {met.intersection}, by chance alone {met.expected:.0f}")
print(f"of these with opposite signs: {met.sign_conflict:.0%}")
