"""What happens at call time: which stream and step a call is (``clock``, ``scope``), whether it executes or forecasts
(``schedule``), with which coefficients (``coefficients``), on which buffers (``buffers``), the hot path (``dispatch``), and its
captures on a GPU (``cuda_graphs``, over ``graph_api``).
"""
