"""Operations on a GPU: Triton kernels, each beside its reference definition in plain torch."""
