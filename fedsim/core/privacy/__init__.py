"""What DP-SGD costs a party, and the noise that a planned run needs."""
