"""What happens at call time: which stream and step a call is (``clock``, ``scope``), whether it executes or forecasts
(``schedule``), with which coefficients (``weights``), on which buffers (``buffers``), and the hot path (``dispatch``).
"""
