"""What is computed in C where a compiler and AVX-512 are: how it is built, and the C of training."""
