"""Performance is measured here and never in a timed test; ratios are taken within one run, in interleaved rounds."""
