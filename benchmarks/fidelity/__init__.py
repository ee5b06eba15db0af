"""How near forecasts come to runs in full, by where the full steps stand and by what forecasts: tables for docs/fidelity.md."""
