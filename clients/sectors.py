"""The sectors by name."""

from __future__ import annotations

from clients.bank import BANK
from clients.employer import EMPLOYER
from clients.hospital import HOSPITAL
from clients.sector import Sector

SECTORS: dict[str, Sector] = {sector.name: sector for sector in (HOSPITAL, BANK, EMPLOYER)}
