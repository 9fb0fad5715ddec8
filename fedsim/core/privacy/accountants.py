"""What DP-SGD costs a party: ε over all rounds, and the noise that a planned run needs.

The mechanism is the Poisson-subsampled Gaussian: in every step each record takes part with probability q
(the sample rate), the clipped gradients are summed and N(0, (σC)²) is added (Abadi et al. 2016, algorithm
1). The unit is one record, neighbouring is add/remove, and q and n are public settings. No amplification by
the server's choice of parties is claimed.

Two accountants, both upper bounds on ε:

rdp   Rényi DP (Mironov 2017; Mironov, Talwar & Zhang 2019), as Opacus computes it: fast, some 8 % above.
prv   privacy random variables composed by FFT (Gopi, Lee & Wutschitz 2021), built from Opacus' parts: tight,
      its error bound max(0.01, ε/1000) included in the ε that is returned. RDP stands in for it where it
      would be slow or numerically unsafe: see `Ledger.accounted_by`.

Adaptive clipping (Andrew et al. 2021, algorithm 1) releases in each step, beside the noisy sum of gradients
clipped to C, a noisy count of those that C did not shorten. Together the two cost what noise multiplier z
alone costs (theorem 1), so that ε is accounted with z = ``Plan.noise_multiplier`` whatever the clipping.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from fedsim.core.privacy.prv import prv_epsilon
from fedsim.core.privacy.rdp import Entry, rdp_epsilon

Accountant = Literal["rdp", "prv"]

LOWEST_PRV_NOISE = 0.4
PRV_ERROR = 0.01


@lru_cache(maxsize=4096)
def spent(entries: tuple[Entry, ...], delta: float, accountant: Accountant) -> tuple[float, Accountant]:
    """Return (ε, accountant used): asked anew after every round of every party, hence the cache."""
    if not entries:
        return 0.0, accountant
    renyi = rdp_epsilon(entries, delta)
    if accountant == "prv" and renyi < math.inf and min(entries)[0] >= LOWEST_PRV_NOISE:
        # In powers of two, so that one grid serves many rounds while ε grows.
        error = PRV_ERROR * 2 ** math.floor(math.log2(max(1.0, renyi / 1000 / PRV_ERROR)))
        tight = prv_epsilon(entries, delta, error)
        if tight is not None:
            return tight, "prv"
    return renyi, "rdp"
