"""fedsim: what could another participant of a federation learn about who is in my data?"""

import os

__version__ = "0.1.0"

# Before NumPy is imported: sums over several threads can differ in the last bit from one machine to the next,
# and matrices this small are faster on one thread. Work is spread over processes instead (`--workers`).
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
