"""What each observer saw, without any membership bit but its owner's own."""
