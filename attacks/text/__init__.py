"""What language models give away: membership of letters, exposure of secrets, extraction."""
