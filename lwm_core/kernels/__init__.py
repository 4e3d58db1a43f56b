"""Ways to compute attention of heads-first arrays, from the plainest to the fastest.

`dense` is the definition. `blockwise` (any device), `gpu` and `tpu` compute in blocks, skip those
that no query sees, and have the same two functions, so that a ring or a cache can visit keys part
by part:

    attend(q, k, v, q_places, k_places, sofar) -> Attended
        what `sofar` says of other keys, joined with attention to these; float32
    gradients(q, k, v, q_places, k_places, lse, shift, d_out, sums) -> (dq, dk, dv)
        `sums` of what other parts gave, with what these keys give added; float32

Queries are `[B, N, T, H]`, keys and values `[B, K, S, H]`, where K divides N; `lse` and `shift` are
float32 `[B, N, T]`: the log-sum-exp over all keys of all parts, and the sum of `d_out * out` over H
less the gradient of the log-sum-exp. Parts can be visited in any order (Liu et al. 2023).
"""
