"""The network. It sees tensors and sizes only: no files, no strings, no configuration.

Shapes are written with these letters everywhere in `nmt`:

    B  sentences in the batch        S  source positions     E  embedding size
    K  hypotheses in one beam        T  target positions     H  decoder state size
    N  decoder rows (B, or B * K)    V  target vocabulary    M  encoder state size
    R  readout size                  A  key size             L  layers

A mask is boolean and True where a token is real.
"""
