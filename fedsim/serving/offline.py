"""What a service would answer, without the service: for measuring a policy before anybody is given a key.

The answers are the service's to the last bit where both draw their noise from the same seed: raw records are
what is asked, so that features which no record has become the nearest that one has, and a record's noise is
its own (`fedsim.serving.policy`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core.data.released import decode_rows
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.serving import policy, release, state
from fedsim.serving.release import Release
from fedsim.serving.state import Secret


@dataclass(frozen=True)
class OfflineModel:
    """A released model behind a policy, asked in this process."""

    release: Release
    stated: OutputPolicy
    secret: Secret
    seed: int

    def ask(self, features: np.ndarray) -> np.ndarray:
        """Return what an outsider is told of features (n, …) float32, (n, classes) float64; NaN: not told."""
        said = self.release.encode(decode_rows(self.release.schema, features))
        digests = policy.record_digests(self.secret, said)
        p, backing = self.release.probabilities(said, self.stated), self.release.backing(self.stated)
        return policy.answer(p, self.stated, digests, self.seed, backing)


def opened(
    run: RunDirectory, stated: OutputPolicy | None = None, *, game: int = 0, seed: int = 0
) -> OfflineModel:
    """Return the final model of a run behind ``stated``, default: the scenario's own policy.

    seed: of the answers' noise, as `fedsim serve --seed` takes it

    Raises:
        InputError: the run cannot be served, or its service folder cannot be used.
    """
    secret = state.secret(state.folder(run.path))
    return OfflineModel(release.load(run, game), stated or run.scenario.adversary.output, secret, seed)
