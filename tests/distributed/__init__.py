"""Models that several processes share: two ranks over gloo, as users run them."""
