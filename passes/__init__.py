"""Graph in, graph out: nothing here runs a model or holds state between calls.

canonicalize -> find_residuals, then find_regions, classify or find_stack -> find_stored -> guard_regions -> specialize ->
(forecast: narrow) -> clean_up -> lower (forecast on a CPU: sum_few_rows, fold_repeats); ``pipeline`` has the order, ``runner``
runs each, ``verify`` checks it.
Invariants: a pass leaves its input as it is and returns a new graph (find_stack and find_stored add nodes to the canonical one,
which nothing else reads); every tensor node carries a fresh ``meta["val"]``; only ``specialize`` writes to inputs, the buffers,
at the end of the graph.
"""
