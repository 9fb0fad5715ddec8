"""Tests of deployments and clusters that take minutes: CI leaves them out, and says so."""

from __future__ import annotations

import os

import pytest

LONG = pytest.mark.skipif("FEDSIM_LONG" not in os.environ, reason="takes minutes: FEDSIM_LONG=1 runs it")
