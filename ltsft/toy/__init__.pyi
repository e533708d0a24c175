from ltsft.toy.family import make_toy as make_toy
