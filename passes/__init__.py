"""Graph in, graph out: nothing here runs a model or holds state between calls.

canonicalize -> find_residuals, find_regions, classify -> guard_regions -> specialize -> clean_up; ``pipeline`` runs them.
Invariants: a pass leaves its input as it is and returns a new graph; every tensor node carries a fresh ``meta["val"]``; only
``specialize`` writes to inputs, the buffers, at the end of the graph.
"""
