"""Is a record fitted better than its class is on the adversary's own held-out records?"""

import numpy as np


def better_than_its_class(view, candidates, rng):
    """Return the log-probability of the label less its mean over own held-out records of that class, (n,)."""

    def fit(records):
        logits = view.logits(view.final_round, records)
        logits = logits - logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return log_p[np.arange(len(records)), records.labels]

    own, usual = view.own_heldout, fit(view.own_heldout)
    by_class = {y: usual[own.labels == y].mean() for y in np.unique(own.labels)}
    return fit(candidates) - np.array([by_class.get(y, usual.mean()) for y in candidates.labels])
