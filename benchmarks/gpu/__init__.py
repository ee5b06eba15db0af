"""The headline on one large GPU: ``python -m benchmarks.gpu`` measures published models with random weights in bfloat16.

``--device cpu --small`` runs the same code with tiny geometry, to see that it works; its figures say nothing.
"""

import time

STARTED = time.monotonic()  # before torch is imported, which counts where a run may take ten minutes
