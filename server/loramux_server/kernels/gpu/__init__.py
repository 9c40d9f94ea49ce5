"""Operations on a GPU: Triton kernels, each beside its definition in plain torch."""
