"""The runtime: at call time, determine the stream and step of a call (``clock``, ``scope``), whether it executes or forecasts
(``schedule``), with which coefficients (``coefficients``), on which buffers (``buffers``), the hot path (``dispatch``), and its
captures on a GPU (``cuda_graphs``, over ``graph_api``).
"""
