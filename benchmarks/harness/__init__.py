"""``taylorseer-fx bench``: every way of making a Diffusion Transformer faster, on the same work, with quality beside speed.

workloads     what is run: real diffusers pipelines, one trained, the others of published geometry
methods/      how it is run: eager, torch.compile, fewer steps, ours, the official recursion, diffusers' caches, cache-dit
running       a method made ready on a workload; every call of the denoiser is seen
measure       rounds A B A B against plain torch.compile; FLOPs and executed steps are counted, not taken from a claim
fidelity      how near the result is to the run in full; frechet: how near many results are to the real digits
results       rows and their JSON; table, plots: what people read
"""
